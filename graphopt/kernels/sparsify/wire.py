"""How few elements of many parameters are laid out in bytes: 6 an element, and 4 a block of a parameter.

A parameter of n elements, of which at most `count` are sent, has a section of fixed size: the number of elements sent
of each block of 65536 (int32), room for `count` values (fp32), then room for their places in their blocks (uint16),
rounded up to whole 4 bytes. Elements are in the order of memory, without gaps from block to block; what is left of the
room is zero. Sections follow each other in the order of the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.base.rounding import ceil_div, round_up

BLOCK_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class Section:
    """Where a parameter's part of a wire begins, in bytes, and how many blocks and elements it has room for."""

    begin_bytes: int
    blocks: int
    capacity: int

    @property
    def values_begin_bytes(self) -> int:
        """Where the values begin in the wire."""
        return self.begin_bytes + 4 * self.blocks

    @property
    def offsets_begin_bytes(self) -> int:
        """Where the places in blocks begin in the wire."""
        return self.values_begin_bytes + 4 * self.capacity

    @property
    def end_bytes(self) -> int:
        """Where the next section begins."""
        return self.offsets_begin_bytes + round_up(2 * self.capacity, 4)


def sections(sizes: Sequence[int], counts: Sequence[int]) -> list[Section]:
    """One section a parameter, by its size and the most elements to send of it, of which no more count than it has."""
    result: list[Section] = []
    begin_bytes = 0
    for size, count in zip(sizes, counts, strict=True):
        result.append(Section(begin_bytes, ceil_div(size, BLOCK_ELEMENTS), min(count, size)))
        begin_bytes = result[-1].end_bytes
    return result


def sparse_wire_bytes(sizes: Sequence[int], counts: Sequence[int]) -> int:
    """Bytes of the wire that `sparsify_` gives for parameters of these sizes, of which so many elements are sent."""
    return sections(sizes, counts)[-1].end_bytes if sizes else 0
