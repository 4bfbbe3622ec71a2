"""Eviction over the whole schedule, for any graph: who is read again late and cheap to have again goes.

Two searches find schedules of ever less memory, one by walking the ops under a limit (`walk`), one by
lowering the highest steps of the whole schedule (`evict`); `fill` then makes the most of each.
"""

from __future__ import annotations

import math
from itertools import pairwise

from graphopt.planners.curve import Curve, CurvePoint, once_per_problem, pareto, pick
from graphopt.planners.evict import descend, lower
from graphopt.planners.fill import fill
from graphopt.planners.floor import practical_floor
from graphopt.planners.hoist import hoist
from graphopt.planners.none import none_curve
from graphopt.planners.spans import Spans, point
from graphopt.planners.walk import walk
from graphopt.problem import Problem
from graphopt.schedule import Schedule

#: Ops up to which there is time for targets, and for seeds to fill, that lie so close together.
EFFORT = ((500, 0.95, 0.95), (1500, 0.9, 0.8), (3000, 0.85, 0.7), (6000, 0.75, 0.6), (math.inf, 0.7, 0.5))
#: Where polishing starts, on a logarithmic scale from the lowest peak to the highest.
POLISHED = (0.0, 0.1, 0.25, 0.4, 0.6)
#: Ops beyond which only the lowest point is polished.
MOST_POLISHED = 1500
#: How far under a point to look for crumbs, as a share of its peak, and under how many points.
CRUMBS, MOST_CRUMBS, FEW = (0.0, 1e-4, 2e-3), 24, 8
#: Rounds of hoisting.
HOISTS = 5


def step_ratio(problem: Problem) -> float:
    """Ratio of one target to the one above it: the larger a problem, the fewer there are."""
    return next(step for most, step, _ in EFFORT if len(problem.ops) <= most)


def walk_points(problem: Problem) -> list[CurvePoint]:
    """One walk for each of a geometric series of limits, closer together as they near the floor."""
    peak, floor = none_curve(problem)[0].peak_bytes, practical_floor(problem)
    step = step_ratio(problem) ** 4
    points: list[CurvePoint] = []
    share = step
    while share > 0.02:
        schedule = walk(problem, floor + int((peak - floor) * share), 0.5)
        if schedule is None:
            break
        points.append(point(problem, schedule, "search"))
        share *= step
    return points


def polish_points(problem: Problem, curve: Curve) -> list[CurvePoint]:
    """Lower the points of a good curve a little further, for the part of it where memory is scarce."""
    highest, lowest = curve[-1].peak_bytes, max(1, curve[0].peak_bytes)
    points: list[CurvePoint] = []
    until = 0
    for share in POLISHED if len(problem.ops) <= MOST_POLISHED else POLISHED[:1]:
        start = lowest * (highest / lowest) ** share
        seed = [p for p in curve if p.peak_bytes <= max(start, lowest)][-1]
        points.extend(descend(problem, seed.schedule, seed.planner, step_ratio(problem), until))
        until = seed.peak_bytes
    return points


def lowest_points(problem: Problem, lowest: CurvePoint) -> list[CurvePoint]:
    """From the lowest point down: hoist and lower in turn, until neither helps."""
    points: list[CurvePoint] = []
    for _ in range(HOISTS):
        hoisted = point(problem, hoist(problem, lowest.schedule), lowest.planner)
        found = [hoisted, *descend(problem, hoisted.schedule, lowest.planner, step_ratio(problem))]
        points.extend(found)
        least = min(found, key=lambda p: (p.peak_bytes, p.seconds))
        if least.peak_bytes >= lowest.peak_bytes:
            break
        lowest = least
    return points


def crumb_points(problem: Problem, curve: Curve) -> list[CurvePoint]:
    """Points just under those before a curve's largest drops: crumbs given up in place of a whole block."""
    drops = sorted(pairwise(curve), key=lambda pair: pair[1].seconds - pair[0].seconds)
    points: list[CurvePoint] = []
    for _, upper in drops[:MOST_CRUMBS]:
        line = Spans(problem, upper.schedule)
        for crumb in CRUMBS:
            lowered = lower(line, int(upper.peak_bytes * (1 - crumb)) - 1, FEW)
            if lowered is not None:
                points.append(point(problem, lowered, upper.planner))
    return points


def fill_points(problem: Problem, seeds: Curve, known: Curve = ()) -> list[CurvePoint]:
    """What keeping more makes of those `seeds` that lie far enough apart, and not far above a `known` curve."""
    points: list[CurvePoint] = []
    # In a small problem there is time to find out whether a trajectory gets below the curve after all.
    known = known if len(problem.ops) > EFFORT[0][0] else ()
    apart = next(ratio for most, _, ratio in EFFORT if len(problem.ops) <= most)
    last = 0.0
    for seed in seeds:
        if seed.peak_bytes * apart >= last and len(seed.base) > len(problem.ops):
            last = float(seed.peak_bytes)
            points.extend(fill(problem, seed, seed.planner, known))
    return points


@once_per_problem
def search_curve(problem: Problem) -> Curve:
    """Both searches, and what keeping more makes of each of their schedules."""
    lowered = descend(problem, range(len(problem.ops)), "search", step_ratio(problem))
    found = pareto([*none_curve(problem), *walk_points(problem), *lowered])
    return pareto([*found, *fill_points(problem, found)])


def plan_search(problem: Problem, budget_bytes: int) -> Schedule:
    """The fastest schedule of the eviction search that fits."""
    return pick(search_curve(problem), budget_bytes)
