"""The ops of a step as plain data: what each does, and which values it reads and makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

#: A parameter or buffer of one layer of a list: which list, which of its layers, and its name in there.
Place = tuple[str, int, str]


@dataclass(frozen=True)
class Item:
    """One op; `what` is equal where ops do the same. Values that it makes are made by no other."""

    what: object
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    backward: bool


@dataclass(frozen=True)
class Sequence:
    """The ops of a forward and then of a backward.

    `residents` are the values that none of them makes, `places` says which of those belong to a layer of a list.
    """

    items: tuple[Item, ...]
    residents: tuple[int, ...]
    places: Mapping[int, Place]

    @cached_property
    def boundary(self) -> int:
        """Where the backward begins."""
        return next((i for i, item in enumerate(self.items) if item.backward), len(self.items))

    @cached_property
    def makers(self) -> dict[int, tuple[int, int]]:
        """The op that makes a value, and which of its outputs that is."""
        return {value: (at, slot) for at, item in enumerate(self.items) for slot, value in enumerate(item.outputs)}

    def half(self, backward: bool) -> range:
        """The ops of the forward, or of the backward."""
        return range(self.boundary, len(self.items)) if backward else range(self.boundary)


def spelled(sequence: Sequence) -> Iterator[tuple[object, tuple[int, ...], tuple[int, ...], bool]]:
    """Each op with its values numbered as they are first met: equal where two sequences are, whatever their numbers."""
    numbers: dict[int, int] = {}

    def number(value: int) -> int:
        return numbers.setdefault(value, len(numbers))

    for item in sequence.items:
        inputs = tuple(map(number, item.inputs))
        yield item.what, inputs, tuple(map(number, item.outputs)), item.backward
