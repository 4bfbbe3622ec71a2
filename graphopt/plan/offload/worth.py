"""Whether values are moved out of memory: only where that is faster than all else that fits, or alone fits."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from graphopt.base.errors import BudgetError
from graphopt.base.units import format_bytes
from graphopt.kernels.offload.link import DepotLink
from graphopt.plan.choice import Choice
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.offload.candidates import movable_bytes
from graphopt.plan.offload.where import Offload
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.room import Room

logger = logging.getLogger("graphopt")

#: What is counted of a transfer's time, for planners that know one lane. Where computing hides most of it a small share
#: finds the fastest plans; where the link is the bottleneck, the whole. Each share is one more problem to plan: both
#: are tried where moving all that may go would keep the lane busy for between so many times what computing takes.
HIDDEN_SHARE, WHOLE_SHARE = 0.1, 1.0
BOTH_FROM, BOTH_TO = 1.0, 8.0
#: Moving must be faster by this share of the time: below it is noise of profiles and links.
LEAST_GAIN = 0.01

#: Plans graphs inside a room.
Make = Callable[[Room], list[PlannedGraph]]


def moving_where_faster(
    studies: Sequence[GraphStudy], make_for: Callable[[Sequence[GraphStudy]], Make], choice: Choice
) -> Make:
    """Plans `studies`, or forms of them that move values, which `make_for` gets in the same order.

    The plan raises the BudgetError of the smallest where none fits.
    """
    if choice.offload is None:
        return make_for(studies)
    offload = choice.offload

    def make(room: Room) -> list[PlannedGraph]:
        least: BudgetError | None = None
        best: list[PlannedGraph] | None = None
        try:
            best = make_for(studies)(room)
        except BudgetError as error:
            least = error
        eager_seconds = math.fsum(study.eager.seconds for study in dict.fromkeys(studies))
        if best and _seconds(best) <= (1 + LEAST_GAIN) * eager_seconds:
            return best
        plain = best
        for share in _shares(studies, offload.link, eager_seconds):
            forms = [study.moving(offload.link, share) or study for study in studies]
            if all(form is study for form, study in zip(forms, studies, strict=True)):
                continue
            try:
                found = make_for(forms)(room)
            except BudgetError as error:
                least = error if least is None or error.minimum_bytes < least.minimum_bytes else least
                continue
            if best is None or _seconds(found) < (1 - LEAST_GAIN) * _seconds(best):
                best = found
        if best is None:
            assert least is not None
            raise least
        _tell(best, plain, offload)
        return best

    return make


def _shares(studies: Sequence[GraphStudy], link: DepotLink, eager_seconds: float) -> list[float]:
    """The shares to try."""
    distinct = dict.fromkeys(studies)
    moved_bytes = sum(movable_bytes(study.graph) for study in distinct)
    busy = (link.write_seconds(moved_bytes) + link.read_seconds(moved_bytes)) / (eager_seconds or 1.0)
    return [
        *([HIDDEN_SHARE] if busy <= BOTH_TO else []),
        *([WHOLE_SHARE] if busy >= BOTH_FROM else []),
    ]


def _tell(best: Sequence[PlannedGraph], plain: Sequence[PlannedGraph] | None, offload: Offload) -> None:
    if best is plain:
        rate = offload.link.read_bytes_per_second
        logger.info(
            "nothing is moved to %s: at %s a second that takes longer than making values again",
            offload.depot,
            format_bytes(int(rate)),
        )


def _seconds(planned: Sequence[PlannedGraph]) -> float:
    return math.fsum(each.simulation.seconds for each in planned)
