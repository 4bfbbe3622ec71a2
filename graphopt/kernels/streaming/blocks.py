"""How the state of many parameters is cut into blocks, and what it takes to have three of them at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graphopt.device.storages import allocated_bytes

#: While one block is computed the next one comes and the last one goes.
SLOTS = 3
#: Elements that any kernel's vectors divide.
VECTOR_ELEMENTS = 64
#: Where a part of a block begins: as far as any kernel's vectors want it.
_ALIGNMENT_BYTES = 64
#: Elements of a block: a sixteenth of what is updated, so that it takes little memory, but enough for a transfer to be
#: fast (benchmarks/optimizer_state.py), and no more than that needs.
SHARE, _LEAST_ELEMENTS, _MOST_ELEMENTS = 16, 2**15, 2**21


@dataclass(frozen=True)
class StatePart:
    """Elements `start` to `stop` of a parameter, in the order that they have in memory."""

    parameter: int
    start: int
    stop: int
    is_last: bool


def block_elements(elements: int) -> int:
    """Elements of a block for an update of so many."""
    wanted = min(max(elements // SHARE, _LEAST_ELEMENTS), _MOST_ELEMENTS)
    return wanted // VECTOR_ELEMENTS * VECTOR_ELEMENTS


def cut(elements: Sequence[int], most_elements: int) -> list[list[StatePart]]:
    """Blocks of at most so many elements of parameters, which follow one another in a block, or are cut.

    They are cut at whole vectors: torch's kernels round otherwise in what is left at the end.
    """
    assert most_elements % VECTOR_ELEMENTS == 0
    blocks: list[list[StatePart]] = []
    room = 0
    for parameter, number in enumerate(elements):
        start = 0
        while start < number:
            if room < min(number - start, VECTOR_ELEMENTS):
                blocks.append([])
                room = most_elements
            fits = number - start <= room
            stop = number if fits else start + room // VECTOR_ELEMENTS * VECTOR_ELEMENTS
            blocks[-1].append(StatePart(parameter, start, stop, fits))
            room -= stop - start
            start = stop
    return blocks


def places(block: Sequence[StatePart], itemsizes: Sequence[int]) -> list[tuple[int, int]]:
    """First byte of each part in a slot and the one behind it, for elements of these sizes by parameter."""
    found, end = [], 0
    for part in block:
        start = -(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        end = start + (part.stop - part.start) * itemsizes[part.parameter]
        found.append((start, end))
    return found


def slots_bytes(params: Sequence[torch.Tensor], kinds: int, most_elements: int) -> int:
    """Bytes of all slots, as the allocator hands them out, for so many kinds of state of these parameters."""
    sizes = [param.numel() for param in params], [param.dtype.itemsize for param in params]
    return SLOTS * kinds * allocated_bytes(slot_bytes(*sizes, most_elements), params[0].device)


def slot_bytes(elements: Sequence[int], itemsizes: Sequence[int], most_elements: int) -> int:
    """Bytes of one slot for one tensor of state a parameter."""
    blocks = cut(elements, most_elements)
    return max((places(block, itemsizes)[-1][1] for block in blocks), default=0)
