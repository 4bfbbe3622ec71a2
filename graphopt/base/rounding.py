"""Whole numbers, rounded up."""

from __future__ import annotations


def ceil_div(number: int, by: int) -> int:
    """How many pieces of size `by` (above 0) it takes to hold `number`."""
    return -(-number // by)


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` (above 0) that is at least `number`."""
    return ceil_div(number, multiple) * multiple
