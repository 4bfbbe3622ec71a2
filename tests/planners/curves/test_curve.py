"""Curves: what beats what, and points put into one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.planners.curves.curve import CurvePoint, at_most, pareto, with_points

points = st.builds(
    lambda peak, seconds: CurvePoint(peak, seconds, "none", np.arange(1)), st.integers(1, 12), st.floats(1.0, 12.0)
)


@given(known=st.lists(points, min_size=1), news=st.lists(points))
def test_points_put_into_a_curve_are_those_of_all_together(known: list[CurvePoint], news: list[CurvePoint]) -> None:
    curve = with_points(pareto(known), news)
    expected = pareto([*known, *news])
    assert [p.peak_bytes for p in curve] == [p.peak_bytes for p in expected]
    # which of two that differ by rounding alone stays depends on which was there
    assert [p.seconds for p in curve] == pytest.approx([p.seconds for p in expected], rel=1e-9)
    for budget in range(curve[0].peak_bytes, 14):
        best = at_most(curve, budget)
        assert best.peak_bytes <= budget
        assert best.seconds == min(p.seconds for p in curve if p.peak_bytes <= budget)


@given(known=st.lists(points, min_size=1))
def test_a_curve_that_beats_all_stays_as_it_is(known: list[CurvePoint]) -> None:
    curve = pareto(known)
    assert with_points(curve, known) is curve
