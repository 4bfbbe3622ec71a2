"""The graphs of one call, planned: one that is the whole model, or several that share the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from graphopt.base.errors import InfeasibleError
from graphopt.plan.choice import Choice
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.infeasible import budget_error
from graphopt.plan.pipeline import plan_graph, plan_within
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.room import Room
from graphopt.plan.shares import joint_peak_bytes, share_budget
from graphopt.run.dynamo_graph import DynamoGraph

#: Plans graphs inside a room, one planned graph for each.
Make = Callable[[Room], list[PlannedGraph]]


@dataclass(frozen=True, eq=False)
class CallPlan:
    """What is in force: the graphs of a call in the order in which they run, one may come twice, and the plan of each.

    `resident_bytes` says what is there beside them, by kind; `plan_seconds` is how long planning took.
    """

    graphs: tuple[DynamoGraph, ...]
    planned: tuple[PlannedGraph, ...]
    resident_bytes: Mapping[str, int]
    plan_seconds: float


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
