"""What ranks keep back between steps, by parameter name and key: made, moved to another number of ranks.

Every state tensor is one rank's share in true units, so that the sum over ranks is what the whole still owes.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graphopt.base.errors import UsageError
from graphopt.compression.methods import Compression, PowerSGD
from graphopt.compression.protocols import state_shapes

#: state[name of the parameter][key of `state_shapes`]
State = dict[str, dict[str, Tensor]]


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


def reshard(states: Sequence[State], world: int) -> list[State]:
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


def own_state(saved: Mapping[str, Any] | Sequence[Mapping[str, Any]], rank: int, world: int) -> State:
    """What a rank goes on with: its own saved state's `"state"`, or its part of all ranks' of then, `reshard`ed.

    Each of `saved` says its `"rank"` and `"world"`. Raises UsageError where one rank's state is of another number
    of ranks, or where not all of them are given.
    """
    if isinstance(saved, Mapping):
        if saved["world"] != world:
            raise UsageError(
                f"compression state of {saved['world']} ranks, and now there are {world}: "
                "pass the list of all ranks' state_dict() of then"
            )
        return dict(saved["state"])
    every = sorted(saved, key=lambda one: int(one["rank"]))
    if not every or [one["rank"] for one in every] != list(range(every[0]["world"])):
        then, given = every[0]["world"] if every else 0, [one["rank"] for one in every]
        raise UsageError(f"compression state of {then} ranks was saved, but what is given is of ranks {given}")
    return reshard([one["state"] for one in every], world)[rank]


def _share(tensors: list[Tensor], key: str, world: int) -> Tensor:
    if key == "query":
        return tensors[0]
    total = tensors[0].double()
    for tensor in tensors[1:]:
        total = total + tensor
    return (total / world).float()
