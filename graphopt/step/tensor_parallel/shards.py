"""Whether the state of an optimizer goes with the DTensors, or shards of them, that it holds."""

from __future__ import annotations

from typing import Any

import torch

from graphopt.base.errors import UsageError
from graphopt.device.storages import local_of


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
