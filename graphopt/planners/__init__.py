"""Planners: `(problem, budget in bytes) -> schedule`, or InfeasibleError.

In every schedule the ops' first runs stand in the problem's own order or, with `auto` and `reorder`, in
that of `reordered(problem)`; recomputations stand between them.
"""

from __future__ import annotations

from collections.abc import Callable

from graphopt.planners.auto import auto_curve, plan_auto
from graphopt.planners.chain import plan_chain
from graphopt.planners.curves.curve import Curve, CurvePoint
from graphopt.planners.exact import plan_exact
from graphopt.planners.mincut import plan_mincut
from graphopt.planners.none import plan_none
from graphopt.planners.reorder import plan_reorder
from graphopt.planners.search import plan_search
from graphopt.planners.sqrt_n import plan_sqrt_n
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule

__all__ = ["PLANNERS", "CurvePoint", "minimum_bytes", "pareto_curve"]

PLANNERS: dict[str, Callable[[Problem, int], Schedule]] = {
    "none": plan_none,
    "sqrt_n": plan_sqrt_n,
    "chain": plan_chain,
    "search": plan_search,
    "auto": plan_auto,
    "mincut": plan_mincut,
    "reorder": plan_reorder,
    "exact": plan_exact,
}


def pareto_curve(problem: Problem) -> Curve:
    """The whole memory/time curve of `auto`: peaks increase, seconds strictly decrease."""
    return auto_curve(problem)


def minimum_bytes(problem: Problem) -> int:
    """The least budget for which `auto` has a schedule."""
    return auto_curve(problem)[0].peak_bytes
