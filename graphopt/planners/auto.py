"""The best of all planners at every budget.

One curve is made for a problem, whatever the budget: so more bytes never cost more time, and no
member is better than the portfolio.
"""

from __future__ import annotations

from graphopt.planners.chain import chain_curve
from graphopt.planners.curve import Curve, once_per_problem, pareto, pick
from graphopt.planners.mincut import mincut_curve
from graphopt.planners.search import (
    MOST_POLISHED,
    crumb_points,
    fill_points,
    lowest_points,
    polish_points,
    search_curve,
)
from graphopt.planners.sqrt_n import sqrt_n_curve
from graphopt.problem import Problem
from graphopt.schedule import Schedule


@once_per_problem
def auto_curve(problem: Problem) -> Curve:
    """All planners' points, the coarse planners' points with more kept, and what lies below the lowest."""
    known = search_curve(problem)
    points = [*known]
    for member in (sqrt_n_curve(problem), chain_curve(problem), mincut_curve(problem)):
        points.extend(member)
        points.extend(fill_points(problem, member, known))
    found = pareto(points)
    lower = pareto(polish_points(problem, found))
    if len(problem.ops) <= MOST_POLISHED:
        lower = pareto([*lower, *lowest_points(problem, pareto([*found, *lower])[0])])
    best = pareto([*found, *lower, *fill_points(problem, lower, found)])
    return pareto([*best, *crumb_points(problem, best)]) if len(problem.ops) <= MOST_POLISHED else best


def plan_auto(problem: Problem, budget_bytes: int) -> Schedule:
    """The fastest schedule known that fits."""
    return pick(auto_curve(problem), budget_bytes)
