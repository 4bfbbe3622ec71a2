"""A good curve made better at one budget after another: what lies just above each is lowered to it.

The searches end at peaks of their own; what is best between two of those is found only where
somebody looks. Each budget starts from the best there is by then, so that gains are handed down.
"""

from __future__ import annotations

from graphopt.planners.curves.curve import Curve, at_most, pareto, with_points
from graphopt.planners.curves.effort import effort_for
from graphopt.planners.moves.evict import reach
from graphopt.planners.moves.fill import fill_points, fill_under
from graphopt.planners.schedules.memory_profile import profile_of
from graphopt.planners.study.study import Study

#: Budgets in a row at which less than this share of a step was gained, after which only every other one is tried.
QUIET, LEAST_GAIN = 3, 1e-4


def refined(study: Study, known: Curve) -> Curve:
    """The curve, at least as good everywhere."""
    curve, effort = known, effort_for(study)
    for sweep in effort.passes:
        budget, fruitless = curve[-1].peak_bytes * sweep.first, 0
        while budget > curve[0].peak_bytes:
            # Where nothing was gained for a while every other budget will do.
            if effort.patient or fruitless < QUIET or fruitless % 2:
                before, curve = curve, _lowered(study, curve, int(budget), budget * sweep.above)
                gained = _seconds(before, int(budget)) - _seconds(curve, int(budget))
                fruitless = 0 if gained > LEAST_GAIN * study.problem.seconds else fruitless + 1
            else:
                fruitless += 1
            budget *= sweep.ratio
    return known if curve is known else pareto([*curve, *fill_points(study, curve, known)])


def _seconds(curve: Curve, budget_bytes: int) -> float:
    return at_most(curve, budget_bytes).seconds


def _lowered(study: Study, curve: Curve, budget_bytes: int, most_bytes: float) -> Curve:
    """With the best schedule of at most `most_bytes` lowered to the budget, and more kept again there."""
    start = at_most(curve, most_bytes)
    if start.peak_bytes <= budget_bytes:
        return curve
    found = reach(profile_of(study, start.steps), budget_bytes)
    if found and found[-1].peak_bytes <= budget_bytes:
        found.append(fill_under(found[-1], budget_bytes))
    return with_points(curve, (step.point(start.planner) for step in found))
