"""In how many pieces graphs are planned: as few as make them fastest in a room, whole where nothing is gained.

Each form of a graph is another problem, and is judged by the same simulator with prices of its own: products of fewer
rows are slower, and are profiled as they are. Planners are asked about few of them: a form that fits in its captured
order needs none, and one whose own values do not fit is not planned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence

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
    every = {pieces for study in studies for pieces in study.forms}
    if not every:
        return make_for(studies)

    def make(room: Room) -> list[PlannedGraph]:
        eager_seconds = math.fsum(study.eager.seconds for study in dict.fromkeys(studies))
        best: list[PlannedGraph] | None = None
        for ways in _by_count(every):
            before = best
            for forms in _worth_planning(studies, ways, room.own_bytes):
                found = _planned(make_for(forms), room)
                if found and (best is None or _seconds(found) < (1 - LEAST_GAIN) * _seconds(best)):
                    best = found
                if best and _seconds(best) <= (1 + LEAST_GAIN) * eager_seconds:
                    return best
            if best and best is before:
                return best
        return best or make_for(smallest_forms(studies))(room)

    return make


def smallest_forms(studies: Sequence[GraphStudy]) -> list[GraphStudy]:
    """Of each the form that can take the fewest bytes, by its floor, with few pieces among those that are alike."""
    return [_smallest(study) for study in studies]


def _smallest(study: GraphStudy) -> GraphStudy:
    best, least = study, math.inf
    for ways in reversed(_by_count(study.forms)):
        forms = [study.form(pieces) for pieces in ways]
        form = min(forms, key=_floor)
        if _floor(form) > NEAR_LEAST * least:
            return best
        best, least = form, min(least, _floor(form))
    return best


def _floor(study: GraphStudy) -> int:
    return practical_floor(study.planned)


def _planned(make: Make, room: Room) -> list[PlannedGraph] | None:
    try:
        return make(room)
    except BudgetError:
        return None


def _by_count(every: Collection[Pieces]) -> list[list[Pieces]]:
    """Whole, then in more and more pieces, each with gradients made with the loss first: those are faster."""
    counts = sorted({pieces.count for pieces in every})
    ways = ([pieces for pieces in every if pieces.count == count] for count in counts)
    return [[WHOLE], *(sorted(each, key=lambda pieces: not pieces.at_once) for each in ways)]


def _worth_planning(
    studies: Sequence[GraphStudy], ways: Sequence[Pieces], own_bytes: int
) -> Iterator[Sequence[GraphStudy]]:
    """The graphs in these pieces, where each of them may fit."""
    for pieces in ways:
        # a form is made only where one of its pieces could fit: its ops are many
        if any(study.graph.forms.largest_bytes > pieces.count * max(own_bytes, 0) for study in studies):
            continue
        forms = [study.form(pieces) for study in studies]
        if all(_floor(form) <= own_bytes for form in forms):
            yield forms


def _seconds(planned: Sequence[PlannedGraph]) -> float:
    return math.fsum(each.simulation.seconds for each in planned)
