"""What ranks keep back between steps, by parameter name and key: made, moved to another number of ranks.

Every state tensor is one rank's share in true units, so that the sum over ranks is what the whole still owes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graphopt.base.errors import UsageError
from graphopt.compression.bucket import Shape
from graphopt.compression.methods import Compression, PowerSGD
from graphopt.compression.protocols import state_shapes
from graphopt.device.ranks import Ranks

#: kept[name of the parameter][key of `state_shapes`]
KeptState = dict[str, dict[str, Tensor]]


def initial_state(method: Compression | None, name: str, parameter: Tensor) -> dict[str, Tensor]:
    """fp32, on the device and in the layout of the parameter: zeros, but PowerSGD's queries, alike on all ranks.

    Queries depend on the method's seed and the parameter's name alone.
    """
    state = {}
    for key, shape in state_shapes(method, tuple(parameter.shape)).items():
        if key == "query":
            assert isinstance(method, PowerSGD)
            source = torch.Generator().manual_seed(method.seed ^ zlib.crc32(name.encode()))
            state[key] = torch.randn(shape, generator=source).to(parameter.device)
        else:
            state[key] = torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
    return state


def reshard(states: Sequence[KeptState], world: int) -> list[KeptState]:
    """States of `len(states)` ranks as states of `world` ranks: the sum over ranks of each tensor stays what it was.

    Each rank gets the sum divided by `world`, so that the mean residual of a step is kept to 1 ulp of fp32 (a
    division, after sums in float64); queries are alike on all ranks and stay. As many ranks as before keep their own.
    """
    if world == len(states):
        return [{name: dict(kept) for name, kept in state.items()} for state in states]
    shared = {
        name: {key: _share([state[name][key] for state in states], key, world) for key in kept}
        for name, kept in states[0].items()
    }
    return [{name: {key: t.clone() for key, t in kept.items()} for name, kept in shared.items()} for _ in range(world)]


def of_each_rank(saved: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A rank's own saved state, or those of all ranks, as a list; raises UsageError where there is none."""
    every = [saved] if isinstance(saved, Mapping) else list(saved)
    if not every:
        raise UsageError("the list of saved states is empty: pass the state_dict() of every rank of then")
    return every


def own_state(
    saved: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    ranks: Ranks | None,
    shapes: Mapping[str, Shape],
    methods_of: Callable[[str], Sequence[Compression | None]],
) -> KeptState:
    """What a rank goes on with: its own saved state's `"state"`, or its part of all ranks' of then, `reshard`ed.

    Each of `saved` says its `"rank"` and `"world"`. Raises UsageError where one rank's state is of another number
    of ranks and something was kept (all ranks keep alike), where not all of them are given, and where what was kept
    is not what one of `methods_of(name)` keeps for a parameter of `shapes[name]`.
    """
    rank, world = (ranks.rank, ranks.world) if ranks is not None else (0, 1)
    every = sorted(of_each_rank(saved), key=lambda one: int(one["rank"]))
    for one in every:
        _check_shapes(one["state"], shapes, methods_of)
    if isinstance(saved, Mapping):
        if saved["world"] != world and any(saved["state"].values()):
            raise UsageError(
                f"compression state of {saved['world']} ranks, and now there are {world}: "
                "pass the list of all ranks' state_dict() of then"
            )
        return dict(saved["state"])
    if [one["rank"] for one in every] != list(range(every[0]["world"])):
        given = [one["rank"] for one in every]
        raise UsageError(
            f"compression state of {every[0]['world']} ranks was saved, but what is given is of ranks {given}"
        )
    return reshard([one["state"] for one in every], world)[rank]


def _check_shapes(
    state: KeptState, shapes: Mapping[str, Shape], methods_of: Callable[[str], Sequence[Compression | None]]
) -> None:
    for name, kept in state.items():
        if name not in shapes:
            raise UsageError(f"compression state for {name!r}, which the model does not train")
        wanted = [state_shapes(method, shapes[name]) for method in methods_of(name)]
        found = {key: tuple(tensor.shape) for key, tensor in kept.items()}
        if found not in wanted:
            raise UsageError(f"compression state of {name!r} has the shapes {found}, the model needs {wanted[0]}")


def _share(tensors: list[Tensor], key: str, world: int) -> Tensor:
    if key == "query":
        return tensors[0]
    total = tensors[0].double()
    for tensor in tensors[1:]:
        total = total + tensor
    return (total / world).float()
