"""Segments between cuts of the forward, each computed once more as the backward enters it.

Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost (2016), section 3.
"""

from __future__ import annotations

from graphopt.planners.chains.cutpoints import border_values, cuts, forward_part
from graphopt.planners.curves.curve import Curve, CurvePoint, once_per_problem, pareto, pick
from graphopt.planners.none import none_curve
from graphopt.planners.schedules.replay_once import recompute_once
from graphopt.planners.schedules.spans import point
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule


def segment_points(problem: Problem) -> list[CurvePoint]:
    """One point for each of a geometric series of segment counts."""
    forward = forward_part(problem)
    points: list[CurvePoint] = []
    tried: set[tuple[int, ...]] = set()
    count = 2
    while count <= max(2, forward.end // 3) and count <= 512:
        positions = cuts(problem, forward, count - 1)
        if tuple(positions) not in tried:
            tried.add(tuple(positions))
            kept = border_values(problem, forward, positions)
            points.append(point(problem, recompute_once(problem, forward.end, kept), "sqrt_n"))
        count = max(count + 1, count * 7 // 5)
    return points


@once_per_problem
def sqrt_n_curve(problem: Problem) -> Curve:
    """The best of all segment counts, at every peak."""
    return pareto([*segment_points(problem), *none_curve(problem)])


def plan_sqrt_n(problem: Problem, budget_bytes: int) -> Schedule:
    """The fastest segmentation that fits."""
    return pick(sqrt_n_curve(problem), budget_bytes)
