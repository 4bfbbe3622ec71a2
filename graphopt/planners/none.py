"""Nothing recomputed."""

from __future__ import annotations

from graphopt.planners.curves.curve import Curve, pick
from graphopt.planners.schedules.memory_profile import in_own_order
from graphopt.planners.study.study import Study, once_per_study
from graphopt.problem.schedule import Schedule


@once_per_study
def none_curve(study: Study) -> Curve:
    """The one point at which every op runs once."""
    return (in_own_order(study).point("none"),)


def plan_none(study: Study, budget_bytes: int) -> Schedule:
    """Every op once, in the problem's own order; raises InfeasibleError where that does not fit."""
    return pick(none_curve(study), budget_bytes)
