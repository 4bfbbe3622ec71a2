"""In how many pieces graphs are planned: as few as make them fastest in a room, whole where nothing is gained.

Each form of a graph is another problem, and is judged by the same simulator with prices of its own: products of fewer
rows are slower, and are profiled as they are. A form takes about as long to make and plan as the graph itself. So few
of them are: which is guessed from the graph as it is, with its values in proportion, and a form that does not keep what
was guessed makes room for one in more pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from graphopt.base.errors import BudgetError
from graphopt.plan.graph_study import Candidate, GraphStudy
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.room import Room
from graphopt.planners.schedules.floor import practical_floor
from graphopt.problem.pieces import WHOLE, Pieces

#: Pieces must be faster by this share of the time: below it is noise of profiles, and each piece is more ops.
LEAST_GAIN = 0.01
#: A form that takes more than the least by no more than this share is as good as the smallest.
NEAR_LEAST = 1.02
#: So many counts are tried from the one that was guessed.
MOST_TRIED = 3

#: Plans graphs inside a room.
Make = Callable[[Room], list[PlannedGraph]]


def in_fewest_pieces(studies: Sequence[GraphStudy], make_for: Callable[[Sequence[GraphStudy]], Make]) -> Make:
    """Plans `studies`, or forms of them, which `make_for` gets in the same order.

    The plan raises the BudgetError of the smallest form where none fits.
    """
    if not any(study.forms for study in studies):
        return make_for(studies)

    def make(room: Room) -> list[PlannedGraph]:
        own_bytes = max(room.own_bytes, 0)
        eager_seconds = math.fsum(study.eager.seconds for study in dict.fromkeys(studies))
        whole = _planned(make_for, [[study.form(WHOLE) for study in studies]], room)
        if whole and (_seconds(whole) <= (1 + LEAST_GAIN) * eager_seconds or not _may_gain(studies, whole, own_bytes)):
            return whole
        best = whole
        for count in _counts(studies, own_bytes):
            divided = _planned(make_for, _forms(studies, count), room)
            if divided is None:
                continue
            if best is not None and _seconds(divided) >= (1 - LEAST_GAIN) * _seconds(best):
                break
            best = divided
            if not _computes_again(best):
                break
        return best or make_for(smallest_forms(studies))(room)

    return make


def smallest_forms(studies: Sequence[GraphStudy]) -> list[GraphStudy]:
    """Of each the form that can take the fewest bytes, as far as is guessed, with few pieces among those alike."""
    return [_smallest(study) for study in studies]


def _smallest(study: GraphStudy) -> GraphStudy:
    counts = [count for count in _known_counts([study]) if count >= _least_count(study)]
    forms = [study.origin]
    for count in counts[:MOST_TRIED]:
        forms += [study.form(pieces) for pieces in _ways(study, count)]
        if min(map(_floor, forms)) <= NEAR_LEAST * _guessed_bytes(study, counts[-1]):
            break
    return min(forms, key=_floor)


def _least_count(study: GraphStudy) -> int:
    """The fewest pieces in which the graph takes the least, as is guessed; 1 is whole."""
    counts = _known_counts([study])
    if not counts:
        return 1
    guesses = {count: _guessed_bytes(study, count) for count in (1, *counts)}
    return next(count for count, guess in guesses.items() if guess <= NEAR_LEAST * guesses[counts[-1]])


def _counts(studies: Sequence[GraphStudy], own_bytes: int) -> list[int]:
    """In how many pieces the graphs may fit into so many bytes: what is guessed, and more."""
    known = _known_counts(studies)
    guessed = max((_guessed_count(study, own_bytes) for study in dict.fromkeys(studies) if study.forms), default=1)
    return [count for count in known if count >= guessed][:MOST_TRIED]


def _guessed_count(study: GraphStudy, own_bytes: int) -> float:
    fits = (count for count in _known_counts([study]) if _guessed_bytes(study, count) <= own_bytes)
    return next(fits, math.inf)


def _guessed_bytes(study: GraphStudy, count: int) -> int:
    """The least bytes in so many pieces: those in the most pieces, and by how much a floor known at once is higher."""
    most = study.origin.as_if_in(_known_counts([study])[-1])
    return most.minimum_bytes + _floor(study.origin.as_if_in(count)) - _floor(most)


def _may_gain(studies: Sequence[GraphStudy], whole: Sequence[PlannedGraph], own_bytes: int) -> bool:
    """Whether a graph in the most pieces would be faster in so many bytes, were its products no slower."""
    counts = _known_counts(studies)
    found = [
        _fastest(study.as_if_in(counts[-1]) if study.forms else study, own_bytes) for study in dict.fromkeys(studies)
    ]
    seconds = math.fsum(each.seconds for each in found if each is not None)
    return None not in found and seconds < (1 - LEAST_GAIN) * _seconds(whole)


def _fastest(study: GraphStudy, own_bytes: int) -> Candidate | None:
    return max((c for c in study.curve if c.peak_bytes <= own_bytes), key=lambda c: c.peak_bytes, default=None)


def _known_counts(studies: Iterable[GraphStudy]) -> list[int]:
    return sorted({pieces.count for study in studies for pieces in study.forms})


def _ways(study: GraphStudy, count: int) -> list[Pieces]:
    """So many pieces with gradients made together with the loss first: those are faster."""
    return sorted((pieces for pieces in study.forms if pieces.count == count), key=lambda pieces: not pieces.at_once)


def _forms(studies: Sequence[GraphStudy], count: int) -> Iterator[Sequence[GraphStudy]]:
    ways = dict.fromkeys(pieces for study in studies for pieces in _ways(study, count))
    for pieces in sorted(ways, key=lambda pieces: not pieces.at_once):
        yield [study.form(pieces) for study in studies]


def _planned(
    make_for: Callable[[Sequence[GraphStudy]], Make], ways: Iterable[Sequence[GraphStudy]], room: Room
) -> list[PlannedGraph] | None:
    """The graphs in the first of these forms that fits."""
    for forms in ways:
        if all(_floor(form) <= room.own_bytes for form in forms):
            try:
                return make_for(forms)(room)
            except BudgetError:
                continue
    return None


def _computes_again(planned: Sequence[PlannedGraph]) -> bool:
    """Whether it takes more time than every op once, so that smaller pieces may be faster."""
    return _seconds(planned) > (1 + LEAST_GAIN) * math.fsum(each.study.eager.seconds for each in planned)


def _floor(study: GraphStudy) -> int:
    return practical_floor(study.planned)


def _seconds(planned: Sequence[PlannedGraph]) -> float:
    return math.fsum(each.simulation.seconds for each in planned)
