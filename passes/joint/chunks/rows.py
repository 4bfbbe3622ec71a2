"""Where a tensor holds the rows of a region: which of its dimensions, and how many elements of them belong to one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rows:
    """Dimensions `first` to `first + count - 1` together hold all rows, `each` of their elements to a row.

    Of a batch of 4 sequences of 32 tokens, `(128, vocabulary)` holds 128 rows as `Rows(0)`, `(4, 32, vocabulary)` as
    `Rows(0, 2)`. Where a row is a sequence, they are `Rows(0, each=32)` and `Rows(0)`. In a piece the dimensions are
    one, of as many elements as its rows have.
    """

    first: int
    count: int = 1
    each: int = 1

    @property
    def end(self) -> int:
        """The first dimension behind them."""
        return self.first + self.count

    def has(self, dimension: int, of: int) -> bool:
        """Whether a dimension, which may count from behind, of a tensor of so many is one of theirs."""
        return self.first <= dimension % of < self.end

    def in_piece(self, dimension: int, of: int) -> int:
        """The number of another dimension of a tensor of `of` dimensions, in a piece of it."""
        dimension %= of
        return dimension if dimension < self.first else dimension - self.count + 1

    def shape_in_piece(self, shape: Sequence[int], rows: int) -> list[int]:
        """The shape of a piece of so many rows."""
        return [*shape[: self.first], rows * self.each, *shape[self.end :]]

    def moved(self, by: int) -> Rows:
        """The same, that many dimensions further behind."""
        return replace(self, first=self.first + by)


def rows_in_view(rows: Rows, total: int, before: Sequence[int], after: Sequence[int]) -> Rows | None:
    """Where a view of shape `after` has the `total` rows of a tensor of shape `before`; None where they are no more.

    A row is one stretch of the elements behind the leading dimensions, in the one and in the other.
    """
    leading, first = math.prod(before[: rows.first]), 0
    while first < len(after) and math.prod(after[:first]) < leading:
        first += 1
    if math.prod(after[:first]) != leading:
        return None
    for end in range(first + 1, len(after) + 1):
        elements = math.prod(after[first:end])
        if elements % total == 0:
            return Rows(first, end - first, elements // total)
    return None
