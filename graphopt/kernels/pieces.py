"""Many tensors in one launch on CUDA: a table of their addresses, and of the pieces that they are cut into."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from graphopt.base.rounding import ceil_div
from graphopt.device.allocator import at_least

#: Elements of a parameter that one program of the norm and of Adam goes through.
PIECE_ELEMENTS = 8192
_KEPT = 16


@lru_cache(maxsize=64)
def pieces(sizes: tuple[int, ...], piece_elements: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tables of tensors of so many elements, cut into pieces of `piece_elements`, on a device; not all may be empty.

    Of each piece the index of its tensor and its first element in that, [pieces]; of each tensor its size, [tensors].
    All are int64, and kept: they must not be written to.
    """
    cut = [(row, start) for row, size in enumerate(sizes) for start in range(0, size, piece_elements)]
    rows, starts = zip(*cut, strict=True)
    return torch.tensor(rows, device=device), torch.tensor(starts, device=device), torch.tensor(sizes, device=device)


def addresses(tensors: list[Tensor]) -> Tensor:
    """The address of each tensor, int64 [tensors] on their device; there must be one. Nothing waits for it."""
    return _table(tuple([t.data_ptr() for t in tensors]), tensors[0].device)


def are_aligned(tensors: list[Tensor]) -> bool:
    """Whether all begin where 16 bytes can be read at once; whole storages always do."""
    return all(t.data_ptr() % 16 == 0 for t in tensors)


@lru_cache(maxsize=_KEPT)
def _table(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    # kept, as a step's tensors are mostly where the last step's were: a copy to the device costs more than a kernel
    table = torch.tensor(numbers)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def table_bytes(sizes: list[int]) -> int:
    """The most that the tables of a step's norm and update, which are kept, take of a device for such gradients."""
    count = sum(ceil_div(size, PIECE_ELEMENTS) for size in sizes)
    return 2 * at_least(8 * count) + (_KEPT + 1) * at_least(8 * len(sizes))
