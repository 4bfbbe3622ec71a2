"""In how many pieces graphs are planned: as few as make them fastest in a room, whole where nothing is gained.

Each form of a graph is another problem, and is judged by the same simulator with prices of its own: products of fewer
rows are slower, and are profiled as they are. Planners are asked about few of them: a form that fits in its captured
order needs none, and one whose own values do not fit is not planned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from graphopt.base.errors import BudgetError
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.room import Room
from graphopt.planners.schedules.floor import practical_floor
from graphopt.problem.pieces import WHOLE, Pieces

#: More pieces must be faster by this share of the time: below it is noise of profiles, and each piece is more ops.
LEAST_GAIN = 0.01
#: A form whose floor is above the least by no more than this share is as good as the smallest.
NEAR_LEAST = 1.02

#: Plans graphs inside a room.
Make = Callable[[Room], list[PlannedGraph]]


def in_fewest_pieces(studies: Sequence[GraphStudy], make_for: Callable[[Sequence[GraphStudy]], Make]) -> Make:
    """Plans `studies`, or forms of them, which `make_for` gets in the same order.

    The plan raises the BudgetError of the smallest form where none fits.
    """
    every = sorted({pieces for study in studies for pieces in study.forms}, key=_by_count)
    if not every:
        return make_for(studies)

    def make(room: Room) -> list[PlannedGraph]:
        best: list[PlannedGraph] | None = None
        for forms in _worth_planning(studies, every, room.own_bytes):
            try:
                planned = make_for(forms)(room)
            except BudgetError:
                continue
            if best is not None and _seconds(planned) > (1 - LEAST_GAIN) * _seconds(best):
                break
            best = planned
            if _seconds(best) <= (1 + LEAST_GAIN) * sum(study.eager.seconds for study in dict.fromkeys(studies)):
                break
        return best if best is not None else make_for(smallest_forms(studies))(room)

    return make


def smallest_forms(studies: Sequence[GraphStudy]) -> list[GraphStudy]:
    """Of each the form that can take the fewest bytes, by its floor, with few pieces among those that are alike."""
    return [_smallest(study) for study in studies]


def _smallest(study: GraphStudy) -> GraphStudy:
    forms = [study.form(pieces) for pieces in (WHOLE, *study.forms)]
    floors = [practical_floor(form.planned) for form in forms]
    return next(form for form, floor in zip(forms, floors, strict=True) if floor <= NEAR_LEAST * min(floors))


def _worth_planning(
    studies: Sequence[GraphStudy], every: Sequence[Pieces], own_bytes: int
) -> Iterator[Sequence[GraphStudy]]:
    """The graphs whole, then in more and more pieces: those of which each may fit."""
    for pieces in (WHOLE, *every):
        forms = [study.form(pieces) for study in studies]
        if all(practical_floor(form.planned) <= own_bytes for form in forms):
            yield forms


def _seconds(planned: Sequence[PlannedGraph]) -> float:
    return math.fsum(each.simulation.seconds for each in planned)


def _by_count(pieces: Pieces) -> tuple[int, bool]:
    return pieces.count, pieces.at_once
