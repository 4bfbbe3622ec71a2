"""The best of all planners at every budget.

One curve is made for a problem, whatever the budget: so more bytes never cost more time, and no
member is better than the portfolio.
"""

from __future__ import annotations

from graphopt.planners.chain import chain_curve, low_chain_points
from graphopt.planners.curves.curve import Curve, CurvePoint, pareto, pick
from graphopt.planners.curves.effort import effort_for
from graphopt.planners.mincut import mincut_curve
from graphopt.planners.moves.fill import fill_points
from graphopt.planners.moves.low_end import low_end_improved
from graphopt.planners.moves.polish import lowered_at_drops, lowest_points, polish_points
from graphopt.planners.moves.refine import refined
from graphopt.planners.moves.retouch import retouched
from graphopt.planners.orders.lower_order import in_lower_order, in_own_ids, slightly_lower
from graphopt.planners.schedules.memory_profile import point
from graphopt.planners.search import search_curve
from graphopt.planners.sqrt_n import sqrt_n_curve
from graphopt.planners.study.study import Study, once_per_study
from graphopt.problem.schedule import Schedule

#: Lowest points of planners that are further above the lowest of all are not lowered.
NEAR_LOWEST = 1.3


def _lowest(study: Study, members: list[Curve], best: Curve) -> list[CurvePoint]:
    """What lies below the lowest points of the curve and of its members."""
    count = effort_for(study).lowest
    distinct = {(curve[0].peak_bytes, curve[0].seconds): curve[0] for curve in (best, *members)}
    starts = [distinct[key] for key in sorted(distinct)]
    near = [p for p in starts if p.peak_bytes <= NEAR_LOWEST * starts[0].peak_bytes]
    return [found for start in near[:count] for found in lowest_points(study, start)]


@once_per_study
def auto_curve(study: Study) -> Curve:
    """The curve of the problem's own order, and that of another one where its peak is clearly lower, made better."""
    curve = pareto([*_in_both_orders(study), point(study, slightly_lower(study), "reorder")])
    done: set[CurvePoint] = set()
    curve = lowered_at_drops(study, refined(study, curve), done)
    curve = lowered_at_drops(study, retouched(study, curve), done)
    return low_end_improved(study, curve, low_chain_points(study))


def _in_both_orders(study: Study) -> Curve:
    other = in_lower_order(study)
    if other is study:
        return in_order_curve(study)
    own = in_order_curve(study) if effort_for(study).both else members_curve(study)
    return pareto([*own, *in_own_ids(study, in_order_curve(other))])


@once_per_study
def members_curve(study: Study) -> Curve:
    """All planners' points with more kept."""
    best = search_curve(study)
    for member in (chain_curve(study), mincut_curve(study), sqrt_n_curve(study)):
        best = pareto([*best, *member, *fill_points(study, member, best)])
    return best


@once_per_study
def in_order_curve(study: Study) -> Curve:
    """All planners' points, what lies just below them, and below the lowest."""
    best = members_curve(study)
    polished = pareto(polish_points(study, best))
    best = pareto([*best, *polished, *fill_points(study, polished, best)])
    members = [curve(study) for curve in (search_curve, chain_curve, mincut_curve, sqrt_n_curve)]
    lowest = pareto(_lowest(study, members, best))
    return pareto([*best, *lowest, *fill_points(study, lowest, best)])


def plan_auto(study: Study, budget_bytes: int) -> Schedule:
    """The fastest schedule known that fits; raises InfeasibleError where none does."""
    return pick(auto_curve(study), budget_bytes)
