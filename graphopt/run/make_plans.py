"""How the graphs of one call are planned inside of a room: alone, several of them, or as a part of a pattern."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from graphopt.base.errors import BudgetError, InfeasibleError
from graphopt.plan.choice import Choice
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.infeasible import budget_error
from graphopt.plan.pipeline import plan_graph, plan_within
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.room import Room
from graphopt.plan.shares import joint_peak_bytes, peak_bytes_of_alike, share_budget

#: Plans graphs inside a room, one planned graph for each.
Make = Callable[[Room], list[PlannedGraph]]


def making_one(study: GraphStudy, choice: Choice) -> Make:
    """Plans the graph that is the whole model."""
    return lambda room: [plan_within(study, room.budget_bytes, room.resident_bytes, choice)]


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
    """Plans the distinct graphs of a call that is one of several before a backward; `pattern` has the graphs of all."""
    if len(set(pattern)) == 1:
        return _making_alike(pattern[0], len(pattern), choice)
    make_all, distinct = making_several(pattern, choice), list(dict.fromkeys(pattern))

    def make(room: Room) -> list[PlannedGraph]:
        planned = dict(zip(distinct, make_all(room), strict=True))
        return [planned[study] for study in dict.fromkeys(sequence)]

    return make


def at_least_the_smallest(make: Make) -> Make:
    """Where nothing fits, the smallest: what takes the room is there once, and it is too late to plan it otherwise."""

    def make_anyway(room: Room) -> list[PlannedGraph]:
        try:
            return make(room)
        except BudgetError as error:
            return make(replace(room, budget_bytes=error.minimum_bytes))

    return make_anyway


def _making_alike(study: GraphStudy, count: int, choice: Choice) -> Make:
    """Plans a graph whose forward runs `count` times before its backwards: one schedule for all of them."""
    plain = replace(choice, plan_seconds=0.0)  # a better schedule may keep more for the backward than the others leave

    def make(room: Room) -> list[PlannedGraph]:
        for candidate in reversed(study.curve_by(choice.planner)):
            if peak_bytes_of_alike(study, candidate.schedule, count) <= room.own_bytes:
                return [plan_graph(study, candidate.peak_bytes, plain)]
        least = peak_bytes_of_alike(study, study.curve[0].schedule, count)
        raise budget_error([study], least, room.budget_bytes, room.resident_bytes, choice.planner)

    return make


def _shares(sequence: Sequence[GraphStudy], room: Room, choice: Choice) -> dict[GraphStudy, int]:
    """What each graph may use of the room, the least of its shares where it runs more than once."""
    try:
        shares: dict[GraphStudy, int] = {}
        for study, share in zip(sequence, share_budget(sequence, room.own_bytes, choice.planner), strict=True):
            shares[study] = min(share, shares.get(study, share))
        return shares
    except InfeasibleError as error:
        least = error.minimum_bytes
        raise budget_error(sequence, least, room.budget_bytes, room.resident_bytes, choice.planner) from None
