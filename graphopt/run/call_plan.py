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


def in_the_place_of(
    call: CallPlan, position: int, study: GraphStudy, budget_bytes: int, choice: Choice
) -> PlannedGraph:
    """A graph that was captured anew, planned for the place of another one (or behind the last) while all others stay.

    Raises BudgetError where it has no schedule that fits beside theirs.
    """
    room = Room(budget_bytes, call.resident_bytes)
    studies = [graph.study for graph in call.planned]
    schedules = [graph.schedule for graph in call.planned]
    studies[position : position + 1] = [study]
    for candidate in reversed(study.curve_by(choice.planner)):
        schedules[position : position + 1] = [candidate.schedule]
        if joint_peak_bytes(studies, schedules) <= room.own_bytes:
            return plan_graph(study, candidate.peak_bytes, choice)
    schedules[position : position + 1] = [study.curve[0].schedule]
    least = joint_peak_bytes(studies, schedules)
    raise budget_error([study], least, budget_bytes, call.resident_bytes, choice.planner)


def with_piece(call: CallPlan, position: int, graph: DynamoGraph, planned: PlannedGraph) -> CallPlan:
    """The call with another graph at that place (or behind the last)."""
    graphs, plans = list(call.graphs), list(call.planned)
    graphs[position : position + 1] = [graph]
    plans[position : position + 1] = [planned]
    return replace(call, graphs=tuple(graphs), planned=tuple(plans))


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
