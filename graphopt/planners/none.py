"""Nothing recomputed."""

from __future__ import annotations

from graphopt.planners.curves.curve import Curve, once_per_problem, pareto, pick
from graphopt.planners.schedules.spans import point
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule


@once_per_problem
def none_curve(problem: Problem) -> Curve:
    """The one point at which every op runs once."""
    return pareto([point(problem, range(len(problem.ops)), "none")])


def plan_none(problem: Problem, budget_bytes: int) -> Schedule:
    """Every op once, in the problem's own order."""
    return pick(none_curve(problem), budget_bytes)
