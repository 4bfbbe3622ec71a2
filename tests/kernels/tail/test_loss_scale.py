"""How a dynamic loss scale moves."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import kernels

OPTIONS = {"growth": 2.0, "backoff": 0.5, "interval": 2, "hysteresis": 1, "lowest": 0.0, "highest": math.inf}


def run(flags: list[bool], start: float, **options: float) -> list[float]:
    """The scale after each step."""
    options = OPTIONS | options
    scale = torch.tensor(start)
    trackers = torch.tensor(0, dtype=torch.int32), torch.tensor(int(options["hysteresis"]), dtype=torch.int32)
    scales = []
    for flag in flags:
        kernels.scale_update_(scale, *trackers, torch.tensor(float(flag)), **options)
        scales.append(float(scale))
    return scales


@given(
    flags=st.lists(st.booleans(), max_size=40),
    start=st.floats(2**-10, 2.0**127, width=32),
    growth=st.floats(1.01, 4),
    backoff=st.floats(0.1, 0.99),
    interval=st.integers(1, 5),
)
@settings(max_examples=200, deadline=None)
def test_without_bounds_and_hysteresis_it_is_torchs_bit_for_bit(
    flags: list[bool], start: float, growth: float, backoff: float, interval: int
) -> None:
    scale, tracker, expected = torch.tensor(start), torch.tensor(0, dtype=torch.int32), []
    for flag in flags:
        torch._amp_update_scale_(scale, tracker, torch.tensor(float(flag)), growth, backoff, interval)
        expected.append(float(scale))
    assert run(flags, start, growth=growth, backoff=backoff, interval=interval) == expected


def test_bounds() -> None:
    assert run([True] * 4, 8.0, lowest=2.0) == [4, 2, 2, 2]
    assert run([False] * 6, 8.0, highest=20.0) == [8, 16, 16, 20, 20, 20]
    assert run([False] * 2, 2.0**127) == [2.0**127] * 2


def test_hysteresis_forgives_until_it_is_used_up_and_growth_refills_it() -> None:
    assert run([True] * 4, 8.0, hysteresis=3) == [8, 8, 4, 2]
    assert run([True, False, True, False, False, True, True], 8.0, hysteresis=2) == [8, 8, 4, 4, 8, 8, 4]


def test_a_sum_of_flags_over_ranks_is_an_overflow() -> None:
    scale, tracker, hysteresis = (
        torch.tensor(8.0),
        torch.tensor(1, dtype=torch.int32),
        torch.tensor(1, dtype=torch.int32),
    )
    kernels.scale_update_(scale, tracker, hysteresis, torch.tensor(3.0), **OPTIONS)
    assert (float(scale), int(tracker)) == (4, 0)
