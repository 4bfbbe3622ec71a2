"""What is saved and loaded of sharded parameters: DTensors under plain names, which other numbers of ranks can read.

`model.state_dict()` and `optimizer.state_dict()` give `torch.distributed.tensor.DTensor`s over this rank's rows, as
those of `fully_shard` do, so that `torch.distributed.checkpoint` saves and loads them, in place. Both load DTensors,
and whole tensors, of which each rank takes its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphopt.base.errors import UsageError
from graphopt.step.optimizer.optimizer_step import own_hook
from graphopt.step.sharding.parameters import Shard, ShardedParameters
from graphopt.step.sharding.share_out import Shared
from graphopt.step.sharding.shared_state import SharedState


def give_state_as_dtensors(sharded: Shared, optimizer: torch.optim.Optimizer) -> None:
    """From now on the state of what is shared out is given, and taken, as above."""
    if isinstance(sharded, ShardedParameters):
        _give_model_state(sharded)
    mesh = sharded.placed.mesh

    def of_optimizer(stepped: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        shards = _shards_by_key(stepped, state, sharded)
        return _with_state(state, shards, lambda rows, shard, _: _as_dtensor(rows, shard, mesh))

    def into_optimizer(stepped: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return _with_state(state, _shards_by_key(stepped, state, sharded), _as_rows)

    if isinstance(sharded, SharedState):
        sharded.state_hooks.append(optimizer.register_step_pre_hook(own_hook(_refusing(sharded))))
    of_optimizer.gives_rows = True  # type: ignore[attr-defined]
    sharded.state_hooks += [
        optimizer.register_state_dict_post_hook(of_optimizer),
        optimizer.register_load_state_dict_pre_hook(into_optimizer),
    ]


def _refusing(sharded: SharedState) -> Callable[..., None]:
    """Refuses a step of the optimizer's own, which would pass over gradients of what it no longer holds."""

    def refuse(*_args: Any) -> None:
        if sharded.has_gradients_of_its_own:
            raise UsageError(
                "this optimizer holds rows of the parameters, as train_step(shard=...) shares its state out over "
                "ranks: its own step() does not see the gradients that a backward leaves. Train by the step, or make "
                "the optimizer whole for good: step.unshard()"
            )

    return refuse


def check_unshared(optimizer: torch.optim.Optimizer) -> None:
    """Raise UsageError for an optimizer whose state another step has shared out."""
    if any(getattr(hook, "gives_rows", False) for hook in optimizer._optimizer_state_dict_post_hooks.values()):
        raise UsageError(
            "the state of this optimizer is shared out already by another train_step(shard=...): step.unshard() makes "
            "it whole again; where that call raised, make a new optimizer from model.parameters()"
        )


def _give_model_state(sharded: ShardedParameters) -> None:
    mesh = sharded.placed.mesh

    def of_model(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
        if not sharded.is_whole:
            for name, shard in sharded.shards.items():
                for key in _keys(sharded, name, prefix, state):
                    state[key] = _as_dtensor(state[key], shard, mesh)

    def into_model(_module: nn.Module, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
        if not sharded.is_whole:
            for name, shard in sharded.shards.items():
                for key in _keys(sharded, name, prefix, state):
                    state[key] = _as_rows(state[key], shard, key)

    sharded.state_hooks += [
        sharded.model.register_state_dict_post_hook(of_model),
        sharded.model.register_load_state_dict_pre_hook(into_model),
    ]


def masters_given(masters: Mapping[str, Tensor], sharded: Shared) -> dict[str, Tensor]:
    """Masters as they are saved."""
    return {name: _as_dtensor(master, sharded.shards[name], sharded.placed.mesh) for name, master in masters.items()}


def masters_taken(saved: Mapping[str, Tensor], sharded: Shared) -> dict[str, Tensor]:
    """This rank's rows of masters as they were saved."""
    return {name: _as_rows(each, sharded.shards[name], f"the master of {name}") for name, each in saved.items()}


def _keys(sharded: ShardedParameters, name: str, prefix: str, state: Mapping[str, Any]) -> list[str]:
    """The keys of a parameter, which stands under each of its names where it is tied."""
    return [prefix + each for each in sharded.names[name] if isinstance(state.get(prefix + each), Tensor)]


def _as_dtensor(rows: Tensor, shard: Shard, mesh: Any) -> Tensor:
    # here, as loading DTensor takes longer than many a small model's capture
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor import Shard as Rows

    whole = torch.empty(shard.shape, device="meta")
    where = [Replicate()] * (mesh.ndim - 1) + [Rows(0)]
    return DTensor.from_local(rows.detach(), mesh, where, run_check=False, shape=whole.shape, stride=whole.stride())


def _as_rows(given: Tensor, shard: Shard, what: str) -> Tensor:
    """This rank's rows of what was saved: a DTensor over any ranks, or a whole tensor."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor import Shard as Rows

    if given.shape != shard.shape:
        raise UsageError(f"{what}: expected the shape {list(shard.shape)}, got {list(given.shape)}")
    if not isinstance(given, DTensor):
        return given[shard.rows]
    local = given.to_local()
    by_rows = given.placements[-1] == Rows(0) and all(each.is_replicate() for each in given.placements[:-1])
    is_mine = by_rows and local.shape[0] == shard.rows.stop - shard.rows.start
    return local if is_mine else given.full_tensor()[shard.rows]


def _shards_by_key(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], sharded: Shared) -> dict[Any, Shard]:
    """By the key under which a parameter's state is saved: a number, or a name where it was given names."""
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    keys = [key for group in state["param_groups"] for key in group["params"]]
    found = ((key, sharded.of_stepped(p)) for key, p in zip(keys, stepped, strict=False))
    return {key: shard for key, shard in found if shard is not None}


def _with_state(state: dict[str, Any], shards: Mapping[Any, Shard], change: Any) -> dict[str, Any]:
    """A copy of an optimizer's saved state in which tensors that go with a parameter's elements are changed."""
    changed = {}
    for number, held in state["state"].items():
        shard = shards.get(number)
        changed[number] = {
            key: change(value, shard, f"{key} of {shard.name}") if shard and _goes_with(value) else value
            for key, value in held.items()
        }
    return {**state, "state": changed}


def _goes_with(value: object) -> bool:
    """Whether it has a number for each element, not one for the whole parameter."""
    return isinstance(value, Tensor) and value.ndim > 0
