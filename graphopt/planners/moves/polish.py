"""Good schedules made better: lower by a little, lower at the low end, and at the drops of a curve."""

from __future__ import annotations

from itertools import pairwise, product

from graphopt.planners.curves.curve import Curve, CurvePoint, at_most, with_points
from graphopt.planners.curves.effort import effort_for
from graphopt.planners.moves.evict import LONGEST_AT_LOWEST, descend, lower
from graphopt.planners.moves.hoist import hoist
from graphopt.planners.schedules.memory_profile import point, profile_of
from graphopt.planners.study.study import Study

#: How far under a point before a drop to look, as a share of its peak, and how many evictions that may take.
SLIGHTLY, FEW = (0.0, 1e-4, 2e-3), 8
#: Where a step takes more than this many times its seconds, only the largest drops are worth a look.
DEAR = 1.1
#: How often that is looked for, under what came of it too.
ROUNDS = 2


def polish_points(study: Study, curve: Curve) -> list[CurvePoint]:
    """Points of a good curve, each lowered as far as the next one."""
    effort = effort_for(study)
    highest, lowest = curve[-1].peak_bytes, max(1, curve[0].peak_bytes)
    points: list[CurvePoint] = []
    until = 0
    for share in effort.polished:
        start = max(lowest, lowest * (highest / lowest) ** share)
        seed = at_most(curve, start)
        if seed.peak_bytes * effort.polish >= until:
            points.extend(descend(study, seed.steps, seed.planner, effort.polish, until, nearer=0 if until else 1))
            until = seed.peak_bytes
    return points


def lowest_points(study: Study, lowest: CurvePoint) -> list[CurvePoint]:
    """From a low point down: hoist and lower in turn, until neither helps."""
    points: list[CurvePoint] = []
    effort = effort_for(study)
    for _ in range(effort.hoists):
        hoisted = point(study, hoist(study, lowest.schedule), lowest.planner)
        found = [hoisted]
        for ratio, longest in product(effort.bottom, LONGEST_AT_LOWEST):
            found += descend(study, hoisted.schedule, lowest.planner, ratio, nearer=2, longest=longest)
        points.extend(found)
        least = min(found, key=lambda p: (p.peak_bytes, p.seconds))
        if least.peak_bytes >= lowest.peak_bytes:
            break
        lowest = least
    return points


def lowered_at_drops(study: Study, curve: Curve, done: set[CurvePoint]) -> Curve:
    """The curve with points just under those before its drops: a few small values given up in place of a whole block.

    What comes of it has drops of its own. Under points that are `done` that was looked for before; those that are
    looked at now join them.
    """
    for _ in range(ROUNDS):
        before, curve = curve, with_points(curve, _points_under_drops(study, curve, done))
        if curve is before:
            break
    return curve


def _points_under_drops(study: Study, curve: Curve, done: set[CurvePoint]) -> list[CurvePoint]:
    effort, once = effort_for(study), study.problem.seconds
    steps = (pair for pair in pairwise(curve) if pair[1] not in done)
    drops = sorted(steps, key=lambda pair: pair[1].seconds - pair[0].seconds)
    points: list[CurvePoint] = []
    for rank, (low, high) in enumerate(drops):
        large = rank < effort.drops
        if not large and low.seconds - high.seconds < effort.least_drop * once:
            break
        if not large and high.seconds > DEAR * once:
            continue
        done.add(high)
        line = profile_of(study, high.steps)
        for share in SLIGHTLY if large else SLIGHTLY[:1]:
            lowered = lower(line, int(high.peak_bytes * (1 - share)) - 1, FEW)
            if lowered is not None:
                points.append(lowered.point(high.planner))
    return points
