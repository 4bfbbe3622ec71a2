"""Order freedom: the whole portfolio on the problem with its ops in an order that needs less memory."""

from __future__ import annotations

from graphopt.planners.auto import in_order_curve
from graphopt.planners.curves.curve import Curve, once_per_problem, pick
from graphopt.planners.orders.lower_order import in_lower_order, in_own_ids
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule


@once_per_problem
def reorder_curve(problem: Problem) -> Curve:
    """Schedules whose first runs stand in the other order; where there is none, in the problem's own."""
    return in_own_ids(problem, in_order_curve(in_lower_order(problem)))


def plan_reorder(problem: Problem, budget_bytes: int) -> Schedule:
    """The fastest schedule in the other order that fits."""
    return pick(reorder_curve(problem), budget_bytes)
