"""Planners: `(problem, budget in bytes) -> schedule`, or InfeasibleError.

In every schedule the ops' first runs stand in the problem's own order or, with `auto` and `reorder`, in
that of `reordered`; recomputations stand between them. Whoever asks more than once about one problem
makes a `Study` of it and passes that in its place: what the planners find out is then found out once.
"""

from __future__ import annotations

from collections.abc import Callable

from graphopt.planners.auto import auto_curve, plan_auto
from graphopt.planners.bounds.lower_bound import lower_bound_seconds
from graphopt.planners.chain import plan_chain
from graphopt.planners.curves.curve import Curve, CurvePoint
from graphopt.planners.exact import plan_exact
from graphopt.planners.mincut import plan_mincut
from graphopt.planners.none import plan_none
from graphopt.planners.reorder import plan_reorder
from graphopt.planners.search import plan_search
from graphopt.planners.sqrt_n import plan_sqrt_n
from graphopt.planners.study.study import Study, study_of
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule

__all__ = ["PLANNERS", "CurvePoint", "Planner", "Study", "lower_bound_seconds", "minimum_bytes", "pareto_curve"]

#: A schedule inside a budget in bytes; raises InfeasibleError, with the least that the planner needs.
Planner = Callable[[Problem | Study, int], Schedule]


def _door(plan: Callable[[Study, int], Schedule]) -> Planner:
    """The planner for a problem, or for what was found out about one before."""

    def planner(problem: Problem | Study, budget_bytes: int) -> Schedule:
        return plan(study_of(problem), budget_bytes)

    return planner


PLANNERS: dict[str, Planner] = {
    "none": _door(plan_none),
    "sqrt_n": _door(plan_sqrt_n),
    "chain": _door(plan_chain),
    "search": _door(plan_search),
    "auto": _door(plan_auto),
    "mincut": _door(plan_mincut),
    "reorder": _door(plan_reorder),
    "exact": _door(plan_exact),
}


def pareto_curve(problem: Problem | Study) -> Curve:
    """The whole memory/time curve of `auto`: peaks increase, seconds strictly decrease."""
    return auto_curve(study_of(problem))


def minimum_bytes(problem: Problem | Study) -> int:
    """The least budget for which `auto` has a schedule."""
    return pareto_curve(problem)[0].peak_bytes
