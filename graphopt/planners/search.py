"""Eviction over the whole schedule, for any graph: who is read again late and cheap to have again goes.

Two searches find schedules of ever less memory, one by walking the ops under a limit (`loops.walk`), one
by lowering the highest steps of the whole schedule (`evict`); `fill` then makes the most of each.
"""

from __future__ import annotations

from graphopt.planners.curves.curve import Curve, CurvePoint, pareto, pick
from graphopt.planners.curves.effort import effort_for
from graphopt.planners.moves.evict import descend
from graphopt.planners.moves.fill import fill_points
from graphopt.planners.none import none_curve
from graphopt.planners.schedules.floor import practical_floor
from graphopt.planners.schedules.memory_profile import in_own_order, point
from graphopt.planners.study.study import Study, once_per_study
from graphopt.problem.schedule import Schedule


def walk_points(study: Study) -> list[CurvePoint]:
    """One walk for each of a series of limits, as long as they find their way."""
    peak, floor = in_own_order(study).peak_bytes, practical_floor(study)
    points: list[CurvePoint] = []
    for share in effort_for(study).walks:
        schedule = study.loops.walk(floor + int((peak - floor) * share))
        if schedule is None:
            break
        points.append(point(study, schedule, "search"))
    return points


@once_per_study
def search_curve(study: Study) -> Curve:
    """Both searches, and what keeping more makes of each of their schedules."""
    walked = pareto(walk_points(study))
    lowered = pareto(descend(study, in_own_order(study).steps, "search", effort_for(study).descent))
    known = pareto([*none_curve(study), *walked, *lowered])
    known = pareto([*known, *fill_points(study, lowered, known)])
    return pareto([*known, *fill_points(study, walked, known)])


def plan_search(study: Study, budget_bytes: int) -> Schedule:
    """The fastest schedule of the eviction search that fits; raises InfeasibleError where none does."""
    return pick(search_curve(study), budget_bytes)
