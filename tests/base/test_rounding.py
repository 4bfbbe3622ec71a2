"""Whole numbers, rounded up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from graphopt.base.rounding import ceil_div, round_up

NUMBERS, SIZES = st.integers(0, 2**70), st.integers(1, 2**40)


@given(NUMBERS, SIZES)
def test_so_many_pieces_hold_it_and_one_less_would_not(number: int, size: int) -> None:
    count = ceil_div(number, size)
    assert count * size >= number > (count - 1) * size
    assert round_up(number, size) == count * size
