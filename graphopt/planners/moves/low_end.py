"""The low end of a good curve made better: from schedules with more memory down to budgets near the least.

A schedule that just fits near the minimum computes the same again and again, and what is wrong with it no
small change mends: local search from there takes some hundred times as long as from a schedule with a tenth
more memory, whose choice of what is kept is sound and of which only what is too much has to go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from graphopt.planners.curves.curve import Curve, CurvePoint, at_most, with_points
from graphopt.planners.curves.effort import effort_for
from graphopt.planners.moves.anneal import lowered_by
from graphopt.planners.moves.fill import fill_under
from graphopt.planners.schedules.memory_profile import point, profile_of
from graphopt.planners.study.study import Study

#: Up to how many times the least peak budgets are tried, and how many times a budget its starts may take.
TOP, ABOVE = 1.4, (1.07, 1.2)
#: Steps of a staircase count as wider than they are by this much (logarithm of bytes), or no narrow one is looked at.
WIDER = 0.02
#: The share of the least peak that is tried for a new one, and how often.
LOWER, MOST_LOWER = 0.98, 3


def low_end_improved(study: Study, known: Curve, more: Sequence[CurvePoint] = ()) -> Curve:
    """The curve, at least as good everywhere; `more` schedules are filled and looked at first."""
    effort = effort_for(study)
    filled = [fill_under(profile_of(study, p.steps), p.peak_bytes).point(p.planner) for p in more]
    curve = with_points(known, filled)
    tried: set[int] = set()
    for _ in range(effort.low_budgets):
        _, budget = max(_untried(curve, tried), default=(0.0, 0))
        if not budget:
            break
        tried.add(budget)
        curve = with_points(curve, _from_above(study, curve, budget, effort.low_moves))
    for _ in range(MOST_LOWER if effort.low_budgets else 0):
        least = curve[0].peak_bytes
        curve = with_points(curve, _from_above(study, curve, int(least * LOWER), effort.low_moves))
        if curve[0].peak_bytes == least:
            break
    return curve


def _untried(curve: Curve, tried: set[int]) -> Iterator[tuple[float, int]]:
    """For each step of the staircase at the low end its area, and an untried budget: where it begins, or half."""
    for low, high in pairwise(curve):
        if low.peak_bytes > TOP * curve[0].peak_bytes:
            break
        area = (low.seconds - high.seconds) * (math.log(high.peak_bytes / max(1, low.peak_bytes)) + WIDER)
        for budget in (low.peak_bytes, (low.peak_bytes + high.peak_bytes) // 2):
            if budget not in tried:
                yield area, budget
                break
            area /= 2


def _from_above(study: Study, curve: Curve, budget_bytes: int, moves: int) -> list[CurvePoint]:
    """What comes of lowering points above a budget to it."""
    known = at_most(curve, budget_bytes).seconds if curve[0].peak_bytes <= budget_bytes else math.inf
    starts = {at_most(curve, max(curve[0].peak_bytes, above * budget_bytes)) for above in ABOVE}
    found = [
        (lowered_by(study, start.schedule, budget_bytes, known, moves), start.planner)
        for start in sorted(starts, key=lambda start: start.peak_bytes)
        if start.peak_bytes > budget_bytes
    ]
    return [point(study, schedule, planner) for schedule, planner in found if schedule is not None]
