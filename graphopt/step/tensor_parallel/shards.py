"""This rank's shard of what belongs to a DTensor, and the DTensor that it is a shard of."""

from __future__ import annotations

from typing import Any

import torch

from graphopt.base.errors import UsageError
from graphopt.device.storages import local_of


def laid_out_like(shard: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """A tensor as `held` is one: a DTensor of its placements around this rank's shard, or the tensor itself."""
    if local_of(held) is held:
        return shard
    from torch.distributed.tensor import DTensor

    of: Any = held
    return DTensor.from_local(shard, of.device_mesh, of.placements, run_check=False, shape=of.shape, stride=of.stride())


def check_state(what: str, state: torch.Tensor, held: torch.Tensor) -> None:
    """Raise UsageError for state of an optimizer that does not go element by element with what it `held`."""
    if not state.ndim:
        return
    if state.shape != held.shape:
        raise UsageError(
            f"the optimizer's {what} has the shape {list(state.shape)}, and what it updates has "
            f"{list(held.shape)}: a state of another model, or of other ranks, was loaded"
        )
    expected, found = _placed(held), _placed(state)
    if expected != found:
        raise UsageError(
            f"the optimizer's {what} is {_in_words(found)}, and the parameter is {_in_words(expected)}: load it by "
            "torch.distributed.checkpoint, or torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
        )


def _placed(tensor: torch.Tensor) -> object:
    """Where the shards of a DTensor are; None of another tensor."""
    of: Any = tensor
    return None if local_of(tensor) is tensor else (of.device_mesh, of.placements)


def _in_words(placed: Any) -> str:
    return "a plain tensor" if placed is None else f"a DTensor {placed[1]} over {placed[0]}"
