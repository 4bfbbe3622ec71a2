"""Curves as they are kept: schedules survive, and what is left out costs as little as can be."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.base.errors import PlanMismatchError
from graphopt.problem import runs
from graphopt.problem.runs import runs_of, schedule_of, thinned


@dataclass(frozen=True)
class Point:
    seconds: float


@given(st.lists(st.integers(0, 30)))
def test_any_schedule_survives(steps: list[int]) -> None:
    assert schedule_of(runs_of(tuple(steps))) == tuple(steps)


def test_runs_are_short_text() -> None:
    assert runs_of((0, 1, 2, 3, 7, 8, 4, 4)) == "0-3 7-8 4 4"
    assert runs_of(()) == "" and schedule_of("") == ()


@pytest.mark.parametrize(
    "text", ["-3", "3-", "1 ", "1  2", "a", "5-4", "1-2-3", "0-9999999999", "0-99999999", "\uff11"]
)
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(PlanMismatchError, match="a kept schedule"):
        schedule_of(text)


def test_many_runs_cannot_ask_for_more_than_one_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MOST_STEPS", 10)
    assert len(schedule_of("0-4 0-4")) == 10
    with pytest.raises(PlanMismatchError, match="too long"):
        schedule_of("0-4 0-4 0")


@given(st.lists(st.floats(1.0, 100.0), min_size=1, max_size=9, unique=True), st.integers(2, 9))
def test_no_choice_of_as_many_points_is_better(seconds: list[float], most: int) -> None:
    """What is lost: the dearest of the points left out, over what it would have cost."""
    curve = [Point(s) for s in sorted(seconds, reverse=True)]
    few = thinned(curve, most)
    ends = {curve[0], curve[-1]}
    assert len(few) <= most and ends <= set(few) and few == [p for p in curve if p in set(few)]

    def loss(chosen: set[Point]) -> float:
        slower = itertools.accumulate((p if p in chosen else None for p in curve), lambda a, b: b or a)
        return max(known.seconds / p.seconds for known, p in zip(slower, curve, strict=True) if known)

    count = min(most, len(curve))
    least = min(loss(set(c)) for c in itertools.combinations(curve, count) if ends <= set(c))
    assert loss(set(few)) <= least * (1 + 1e-9)
