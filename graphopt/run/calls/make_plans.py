"""How the graphs of one call are planned inside of a room: alone, several of them, or as a part of a pattern."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

from graphopt.base.errors import BudgetError, CaptureError, InfeasibleError
from graphopt.plan.choice import Choice
from graphopt.plan.graph_study import Candidate, GraphStudy
from graphopt.plan.infeasible import budget_error
from graphopt.plan.offload.worth import moving_where_faster
from graphopt.plan.pieces import in_fewest_pieces
from graphopt.plan.pipeline import plan_as, plan_graph, plan_within
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.room import Room
from graphopt.plan.shares import joint_peak_bytes, peak_bytes_of_alike, share_budget
from graphopt.planners.curves.curve import pareto
from graphopt.run.model.part import Part

#: Schedules of a graph that are priced for a pattern, each by a simulation.
_MOST_PRICED = 256

#: Plans graphs inside a room, one planned graph for each.
Make = Callable[[Room], list[PlannedGraph]]


def making_one(study: GraphStudy, choice: Choice) -> Make:
    """Plans the graph that is the whole model."""
    return lambda room: [plan_within(study, room.budget_bytes, room.resident_bytes, choice)]


def making_best(study: GraphStudy, choice: Choice) -> Make:
    """The same in whichever form is fastest: in pieces, with values moved, or as it is."""

    def make_for(forms: Sequence[GraphStudy]) -> Make:
        return moving_where_faster(forms, lambda moving: making_one(moving[0], choice), choice)

    return in_fewest_pieces([study], make_for)


def making_several(sequence: Sequence[GraphStudy], choice: Choice) -> Make:
    """Plans the distinct graphs of a sequence, in order: one that runs twice gets the least of its shares.

    Seconds to search for better plans are divided over the graphs.
    """
    studies = list(dict.fromkeys(sequence))
    choice = replace(choice, plan_seconds=choice.plan_seconds / max(len(studies), 1))

    def make(room: Room) -> list[PlannedGraph]:
        shares = _shares(sequence, room, choice)
        planned = {study: plan_graph(study, shares[study], choice) for study in studies}
        schedules = [planned[study].schedule for study in sequence]
        if choice.plan_seconds and joint_peak_bytes(sequence, schedules) > room.own_bytes:
            # inside its share, a search for better may keep more for the backward than the others leave room for
            plain = replace(choice, plan_seconds=0.0)
            return [plan_graph(study, shares[study], plain) for study in studies]
        return list(planned.values())

    return make


def making_in_pattern(sequence: Sequence[GraphStudy], pattern: Sequence[GraphStudy], choice: Choice) -> Make:
    """Plans the distinct graphs of a call that is one of several before a backward; `pattern` has the graphs of all.

    Each schedule is priced as if all of the pattern were it: that counts what it keeps as often as others wait. Of each
    graph the fastest below one price is taken, the highest price with which all of them fit.
    """
    distinct = list(dict.fromkeys(pattern))

    def make(room: Room) -> list[PlannedGraph]:
        curves = {study: _priced_in_pattern(study, len(pattern), choice) for study in distinct}
        prices = sorted({point.peak_bytes for curve in curves.values() for point in curve})

        def excess_bytes(price: int) -> int:
            chosen = {study: _below(curve, price) for study, curve in curves.items()}
            return joint_peak_bytes(pattern, [chosen[study].schedule for study in pattern]) - room.own_bytes

        at = bisect_right(prices, 0, key=excess_bytes)
        if not at:
            least = room.own_bytes + excess_bytes(prices[0])
            raise budget_error(pattern, least, room.budget_bytes, room.resident_bytes, choice.planner, choice.numerics)
        studies = dict.fromkeys(sequence)
        return [plan_as(study, _below(curves[study], prices[at - 1]).schedule, choice) for study in studies]

    return make


def making_part(sequence: Sequence[GraphStudy], part: Part, choice: Choice) -> Make:
    """Plans what others say of a module that shares their budget; raises CaptureError where it is several graphs."""

    def make(_: Room) -> list[PlannedGraph]:
        if len(sequence) > 1:
            raise CaptureError(
                f"a module that shares a budget with others must be one graph, and is {len(sequence)}: see why with "
                "graphopt.optimize() of it alone, and leave it out of the blocks or take out what breaks it"
            )
        return [plan_as(study, part.schedule_of(study), choice) for study in sequence]

    return make


def at_least_the_smallest(make: Make) -> Make:
    """Where nothing fits, the smallest: what takes the room is there once, and it is too late to plan it otherwise."""

    def make_anyway(room: Room) -> list[PlannedGraph]:
        try:
            return make(room)
        except BudgetError as error:
            return make(replace(room, budget_bytes=error.minimum_bytes))

    return make_anyway


def _priced_in_pattern(study: GraphStudy, count: int, choice: Choice) -> tuple[Candidate, ...]:
    """Schedules of a graph, with the peak that there would be if its forward ran `count` times before its backwards."""
    candidates = [*study.curve_by(choice.planner), *(study.frugal if choice.planner == "auto" else ())]
    few = candidates[:: len(candidates) // _MOST_PRICED + 1]
    return pareto(replace(each, peak_bytes=peak_bytes_of_alike(study, each.schedule, count)) for each in few)


def _below(curve: Sequence[Candidate], price: int) -> Candidate:
    """The fastest in so many bytes; the smallest where none is."""
    return curve[max(bisect_right(curve, price, key=lambda each: each.peak_bytes) - 1, 0)]


def _shares(sequence: Sequence[GraphStudy], room: Room, choice: Choice) -> dict[GraphStudy, int]:
    """What each graph may use of the room, the least of its shares where it runs more than once."""
    try:
        shares: dict[GraphStudy, int] = {}
        for study, share in zip(sequence, share_budget(sequence, room.own_bytes, choice.planner), strict=True):
            shares[study] = min(share, shares.get(study, share))
        return shares
    except InfeasibleError as error:
        least = error.minimum_bytes
        raise budget_error(
            sequence, least, room.budget_bytes, room.resident_bytes, choice.planner, choice.numerics
        ) from None
