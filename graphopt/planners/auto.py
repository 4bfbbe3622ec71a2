"""The best of all planners at every budget.

One curve is made for a problem, whatever the budget: so more bytes never cost more time, and no
member is better than the portfolio.
"""

from __future__ import annotations

from graphopt.planners.chain import chain_curve
from graphopt.planners.curve import Curve, once_per_problem, pareto, pick
from graphopt.planners.fill import fill
from graphopt.planners.search import search_curve
from graphopt.planners.sqrt_n import sqrt_n_curve
from graphopt.problem import Problem
from graphopt.schedule import Schedule

#: Seeds that are filled from each planner that works in whole segments.
SEEDS = 3


@once_per_problem
def auto_curve(problem: Problem) -> Curve:
    """All planners' points, and the coarse planners' points with more kept."""
    points = [*search_curve(problem)]
    for member in (sqrt_n_curve(problem), chain_curve(problem)):
        points.extend(member)
        for seed in member[:-1][:SEEDS]:
            points.extend(fill(problem, seed, seed.planner))
    return pareto(points)


def plan_auto(problem: Problem, budget_bytes: int) -> Schedule:
    """The fastest schedule known that fits."""
    return pick(auto_curve(problem), budget_bytes)
