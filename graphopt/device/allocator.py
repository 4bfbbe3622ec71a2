"""How the CUDA caching allocator counts what was asked for: whole blocks.

PyTorch's c10/cuda/CUDACachingAllocator.cpp: sizes are rounded up to 512 bytes. A request above 1 MiB is cut from
a larger block only where more than 1 MiB would be left over, else it gets that too; expandable segments are cut to
512 bytes always.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.utils._python_dispatch import _disable_current_modes

from graphopt.base.rounding import round_up

ROUND_BYTES = 512
SMALL_BYTES = 1 << 20


def at_least(number_bytes: int) -> int:
    """What is counted for so many bytes where the block was cut to size."""
    return round_up(number_bytes, ROUND_BYTES)


def at_most(number_bytes: int, device: torch.device) -> int:
    """The most that may be counted for a block that is not there yet."""
    rounded = at_least(number_bytes)
    return rounded if rounded <= SMALL_BYTES or cuts_to_size(device.index) else rounded + SMALL_BYTES


@cache
def cuts_to_size(index: int | None) -> bool:
    """Whether a device's allocator has expandable segments; it is asked for one large block."""
    if not torch.cuda.is_available():
        return True
    device = torch.device("cuda", torch.cuda.current_device() if index is None else index)
    with _disable_current_modes():  # asked in the middle of a capture, where tensors are fake
        block = torch.empty(2 * SMALL_BYTES, dtype=torch.uint8, device=device)
        address = block.data_ptr()
    return any(
        segment.get("is_expandable", False)
        for segment in torch.cuda.memory_snapshot()
        if segment["address"] <= address < segment["address"] + segment["total_size"]
    )
