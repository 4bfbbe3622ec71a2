"""The best of all planners at every budget.

One curve is made for a problem, whatever the budget: so more bytes never cost more time, and no
member is better than the portfolio.
"""

from __future__ import annotations

from graphopt.planners.chain import chain_curve
from graphopt.planners.curves.curve import Curve, CurvePoint, once_per_problem, pareto, pick
from graphopt.planners.curves.effort import effort_for
from graphopt.planners.mincut import mincut_curve
from graphopt.planners.moves.polish import lowest_points, polish_points, with_crumbs
from graphopt.planners.moves.refine import refined
from graphopt.planners.moves.retouch import retouched
from graphopt.planners.orders.lower_order import in_lower_order, in_own_ids, slightly_lower
from graphopt.planners.schedules.spans import point
from graphopt.planners.search import fill_points, search_curve
from graphopt.planners.sqrt_n import sqrt_n_curve
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule

#: Lowest points of planners that are further above the lowest of all are not lowered.
NEAR_LOWEST = 1.3


def _lowest(problem: Problem, members: list[Curve], best: Curve) -> list[CurvePoint]:
    """What lies below the lowest points of the curve and of its members."""
    count = effort_for(problem).lowest
    distinct = {(curve[0].peak_bytes, curve[0].seconds): curve[0] for curve in (best, *members)}
    starts = [distinct[key] for key in sorted(distinct)]
    near = [p for p in starts if p.peak_bytes <= NEAR_LOWEST * starts[0].peak_bytes]
    return [found for start in near[:count] for found in lowest_points(problem, start)]


@once_per_problem
def auto_curve(problem: Problem) -> Curve:
    """The curve of the problem's own order, and that of another one where its peak is clearly lower, made better."""
    curve = pareto([*_in_both_orders(problem), point(problem, slightly_lower(problem), "reorder")])
    done: set[CurvePoint] = set()
    curve = with_crumbs(problem, refined(problem, curve), done)
    return with_crumbs(problem, retouched(problem, curve), done)


def _in_both_orders(problem: Problem) -> Curve:
    other = in_lower_order(problem)
    if other.ops == problem.ops:
        return in_order_curve(problem)
    own = in_order_curve(problem) if effort_for(problem).both else members_curve(problem)
    return pareto([*own, *in_own_ids(problem, in_order_curve(other))])


@once_per_problem
def members_curve(problem: Problem) -> Curve:
    """All planners' points with more kept."""
    best = search_curve(problem)
    for member in (chain_curve(problem), mincut_curve(problem), sqrt_n_curve(problem)):
        best = pareto([*best, *member, *fill_points(problem, member, best)])
    return best


@once_per_problem
def in_order_curve(problem: Problem) -> Curve:
    """All planners' points, what lies just below them, and below the lowest."""
    best = members_curve(problem)
    polished = pareto(polish_points(problem, best))
    best = pareto([*best, *polished, *fill_points(problem, polished, best)])
    members = [curve(problem) for curve in (search_curve, chain_curve, mincut_curve, sqrt_n_curve)]
    lowest = pareto(_lowest(problem, members, best))
    return pareto([*best, *lowest, *fill_points(problem, lowest, best)])


def plan_auto(problem: Problem, budget_bytes: int) -> Schedule:
    """The fastest schedule known that fits."""
    return pick(auto_curve(problem), budget_bytes)
