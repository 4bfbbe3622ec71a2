"""A small problem's curve made better where it is steepest: cuts and local moves for single budgets.

What the searches leave is a staircase, and just under a step's edge a budget pays for the whole step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from graphopt.planners.curves.curve import Curve, CurvePoint, with_points
from graphopt.planners.curves.effort import effort_for
from graphopt.planners.moves.anneal import improve_briefly
from graphopt.planners.schedules.memory_profile import point
from graphopt.planners.study.study import Study

#: Steps of a staircase count as wider than they are by this much (logarithm of bytes), or no narrow one is looked at.
WIDER = 0.1
#: Budgets that are tried lie this share of their bytes apart.
APART = 0.005
#: Budgets in a row for which nothing better was found, after which the search ends.
MOST_FRUITLESS = 3


def retouched(study: Study, known: Curve) -> Curve:
    """The curve, at least as good everywhere: better at its lowest point, then where its steps are largest."""
    curve, tried, fruitless = known, list[int](), 0
    for turn in range(effort_for(study).retouches):
        steps = _steps(curve, tried) if turn else iter([(0.0, curve[0].peak_bytes, curve[0])])
        _, budget, start = min(steps, key=lambda step: step[:2], default=(0.0, 0, None))
        if start is None or fruitless == MOST_FRUITLESS:
            break
        tried.append(budget)
        found = point(study, improve_briefly(study, start.schedule, budget), start.planner)
        before, curve = curve, with_points(curve, [found])
        fruitless = fruitless + 1 if curve is before else 0
    return curve


def _steps(curve: Curve, tried: Sequence[int]) -> Iterator[tuple[float, int, CurvePoint]]:
    """For each step of the staircase minus its area, the budget right under its edge, and where to start."""
    for low, high in pairwise(curve):
        budget = high.peak_bytes - 1
        if budget >= low.peak_bytes and all(abs(budget - other) > APART * other for other in tried):
            width = math.log(high.peak_bytes / max(1, low.peak_bytes)) + WIDER
            yield (high.seconds - low.seconds) * width, budget, low
