"""Order freedom: the whole portfolio on the problem with its ops in an order that needs less memory."""

from __future__ import annotations

from graphopt.planners.auto import in_order_curve
from graphopt.planners.curves.curve import Curve, pick
from graphopt.planners.orders.lower_order import in_lower_order, in_own_ids
from graphopt.planners.study.study import Study, once_per_study
from graphopt.problem.schedule import Schedule


@once_per_study
def reorder_curve(study: Study) -> Curve:
    """Schedules whose first runs stand in the other order; where there is none, in the problem's own."""
    return in_own_ids(study, in_order_curve(in_lower_order(study)))


def plan_reorder(study: Study, budget_bytes: int) -> Schedule:
    """The fastest schedule in the other order that fits; raises InfeasibleError where none does."""
    return pick(reorder_curve(study), budget_bytes)
