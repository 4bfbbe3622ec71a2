"""Many tensors in one launch on CUDA: a table of their addresses, and of the pieces that they are cut into."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def pieces(sizes: tuple[int, ...], piece_elements: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of each piece its tensor and its first element; of each tensor its size. Not all may be empty."""
    cut = [(row, start) for row, size in enumerate(sizes) for start in range(0, size, piece_elements)]
    rows, starts = zip(*cut, strict=True)
    return torch.tensor(rows, device=device), torch.tensor(starts, device=device), torch.tensor(sizes, device=device)


def addresses(tensors: list[Tensor]) -> Tensor:
    """Where each tensor begins, as int64 on their device; nothing waits for it."""
    table = torch.tensor([t.data_ptr() for t in tensors])
    if tensors[0].is_cuda:
        return table.pin_memory().to(tensors[0].device, non_blocking=True)
    return table
