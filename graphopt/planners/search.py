"""Eviction over the whole schedule, for any graph: who is read again late and cheap to have again goes.

Two searches find schedules of ever less memory, one by walking the ops under a limit (`walk`), one by
lowering the highest steps of the whole schedule (`evict`); `fill` then makes the most of each.
"""

from __future__ import annotations

from graphopt.planners.curves.curve import Curve, CurvePoint, once_per_problem, pareto, pick
from graphopt.planners.curves.effort import effort_for
from graphopt.planners.moves.evict import descend
from graphopt.planners.moves.fill import fill
from graphopt.planners.moves.walk import walk
from graphopt.planners.none import none_curve
from graphopt.planners.schedules.floor import practical_floor
from graphopt.planners.schedules.spans import point
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule


def walk_points(problem: Problem) -> list[CurvePoint]:
    """One walk for each of a series of limits, as long as they find their way."""
    peak, floor = none_curve(problem)[0].peak_bytes, practical_floor(problem)
    points: list[CurvePoint] = []
    for share in effort_for(problem).walks:
        schedule = walk(problem, floor + int((peak - floor) * share))
        if schedule is None:
            break
        points.append(point(problem, schedule, "search"))
    return points


def fill_points(problem: Problem, seeds: Curve, known: Curve = ()) -> list[CurvePoint]:
    """What keeping more makes of those `seeds` that lie far enough apart, and not far above a `known` curve."""
    points: list[CurvePoint] = []
    effort = effort_for(problem)
    last = 0.0
    for seed in seeds:
        if seed.peak_bytes * effort.apart >= last and len(seed.base) > len(problem.ops):
            last = float(seed.peak_bytes)
            points.extend(fill(problem, seed, seed.planner, effort.batches, () if effort.patient else known))
    return points


@once_per_problem
def search_curve(problem: Problem) -> Curve:
    """Both searches, and what keeping more makes of each of their schedules."""
    walked = pareto(walk_points(problem))
    lowered = pareto(descend(problem, range(len(problem.ops)), "search", effort_for(problem).descent))
    known = pareto([*none_curve(problem), *walked, *lowered])
    known = pareto([*known, *fill_points(problem, lowered, known)])
    return pareto([*known, *fill_points(problem, walked, known)])


def plan_search(problem: Problem, budget_bytes: int) -> Schedule:
    """The fastest schedule of the eviction search that fits."""
    return pick(search_curve(problem), budget_bytes)
