"""compress="auto": what it picks is the shortest step that trust allows, and nothing where it would lose."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.base.errors import UsageError
from graphopt.compression.choose import LEAST_GAIN, Auto, MethodPrice, choose, step_seconds
from graphopt.compression.methods import EightBit, HalfCast, TopK

HALF, EIGHT = HalfCast(torch.bfloat16), EightBit()
_seconds = st.integers(0, 20).map(float)
_bucket = st.tuples(_seconds, _seconds, _seconds)


@settings(max_examples=300, deadline=None)
@given(st.lists(_bucket, min_size=1, max_size=6), st.integers(0, 60))
def test_one_candidate_is_used_as_well_as_it_can_be(buckets: list[tuple[float, float, float]], backward: int) -> None:
    prices = [{None: MethodPrice(0.0, plain), EIGHT: MethodPrice(kernel, wire)} for plain, kernel, wire in buckets]
    ready = [backward * (i + 1) / len(buckets) for i in range(len(buckets))]
    choice = choose(Auto((EIGHT,)), prices, ready)
    uncompressed = step_seconds([None] * len(buckets), prices, ready)
    best = min(step_seconds(methods, prices, ready) for methods in product((None, EIGHT), repeat=len(buckets)))
    found = step_seconds(choice.methods, prices, ready)
    if EIGHT in choice.methods:
        assert found < uncompressed * (1 - LEAST_GAIN)
        assert found <= 1.01 * best
    else:
        assert best >= 0.98 * uncompressed * (1 - LEAST_GAIN)


def test_the_network_carries_one_bucket_after_the_other_behind_the_kernels() -> None:
    prices = [{EIGHT: MethodPrice(1.0, 5.0)}, {EIGHT: MethodPrice(2.0, 3.0)}]
    # sent from 11 to 16 and from 16 to 19
    assert step_seconds([EIGHT, EIGHT], prices, [10.0, 12.0]) == 19.0
    # the second is ready at 33 only
    assert step_seconds([EIGHT, EIGHT], prices, [10.0, 30.0]) == 36.0


def test_what_the_backward_hides_is_left_uncompressed() -> None:
    prices = [{None: MethodPrice(0.0, 2.0), EIGHT: MethodPrice(0.1, 0.5)}] * 5
    ready = [10.0, 20.0, 30.0, 40.0, 50.0]
    assert choose(Auto((EIGHT,)), prices, ready).methods == (None,) * 5
    # on a network five times as slow the last ones do not hide
    slow = [{None: MethodPrice(0.0, 15.0), EIGHT: MethodPrice(0.1, 2.5)}] * 5
    methods = choose(Auto((EIGHT,)), slow, ready).methods
    assert methods[-1] == EIGHT and None in methods


def test_kernels_that_cost_more_than_the_network_are_refused_and_said_to_be() -> None:
    prices = [{None: MethodPrice(0.0, 8.0), EIGHT: MethodPrice(20.0, 2.0)}] * 3
    choice = choose(Auto((EIGHT,)), prices, [0.0] * 3)
    assert choice.methods == (None,) * 3
    assert "EightBit(): not taken" in choice.reasons[1]


def test_a_candidate_of_less_trust_must_gain_on_the_one_before_it() -> None:
    def methods(eight: float) -> set[object]:
        prices = [{None: MethodPrice(0.0, 8.0), HALF: MethodPrice(0.1, 4.0), EIGHT: MethodPrice(0.1, eight)}] * 4
        return set(choose(Auto((HALF, EIGHT)), prices, [0.0] * 4).methods)

    assert methods(3.9) == {HALF}
    assert methods(2.0) == {EIGHT}


def test_sparse_methods_are_picked_only_where_they_are_named() -> None:
    assert Auto().candidates == (HALF, EIGHT)
    with pytest.raises(UsageError, match="at least one"):
        Auto(())
    assert TopK(0.01) in Auto((EIGHT, TopK(0.01))).candidates
