"""What an optimizer keeps of rows, made whole again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def make_state_whole(
    optimizer: torch.optim.Optimizer, stepped: Tensor, rows: torch.Size, gathered: Callable[[Tensor], Tensor]
) -> None:
    """Replace what is kept of a tensor, and has the shape of its `rows`, by what `gathered` makes of it: collective."""
    held = optimizer.state.get(stepped, {})
    for key, value in held.items():
        if isinstance(value, Tensor) and value.ndim and value.shape == rows:
            held[key] = gathered(value)
