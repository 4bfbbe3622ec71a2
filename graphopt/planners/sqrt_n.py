"""Segments between cuts of the forward, each computed once more as the backward enters it.

Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost (2016), section 3.
"""

from __future__ import annotations

from graphopt.planners.chains.cutpoints import border_values, cuts, forward_part
from graphopt.planners.curves.curve import Curve, CurvePoint, pareto, pick
from graphopt.planners.none import none_curve
from graphopt.planners.schedules.memory_profile import point
from graphopt.planners.schedules.recompute import recompute_once
from graphopt.planners.study.study import Study, once_per_study
from graphopt.problem.schedule import Schedule


def segment_points(study: Study) -> list[CurvePoint]:
    """One point for each of a geometric series of segment counts."""
    problem, forward = study.problem, forward_part(study.problem)
    points: list[CurvePoint] = []
    tried: set[tuple[int, ...]] = set()
    count = 2
    while count <= max(2, forward.end // 3) and count <= 512:
        positions = cuts(forward, count - 1)
        if tuple(positions) not in tried:
            tried.add(tuple(positions))
            kept = border_values(problem, forward, positions)
            points.append(point(study, recompute_once(study, forward.end, kept), "sqrt_n"))
        count = max(count + 1, count * 7 // 5)
    return points


@once_per_study
def sqrt_n_curve(study: Study) -> Curve:
    """The best of all segment counts, at every peak."""
    return pareto([*segment_points(study), *none_curve(study)])


def plan_sqrt_n(study: Study, budget_bytes: int) -> Schedule:
    """The fastest segmentation that fits; raises InfeasibleError where none does."""
    return pick(sqrt_n_curve(study), budget_bytes)
