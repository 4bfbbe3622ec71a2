"""The graphs of one call, planned: one that is the whole model, or several that share the budget."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from graphopt.base.units import format_bytes
from graphopt.plan.choice import Choice
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.infeasible import budget_error
from graphopt.plan.model_plan import build_plan
from graphopt.plan.pipeline import plan_graph
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.room import Room
from graphopt.plan.shares import joint_peak_bytes, saved_bytes
from graphopt.problem.plan import Plan
from graphopt.report.build import build_report
from graphopt.report.traces.from_plans import timeline_of_call
from graphopt.report.traces.torch_trace import log_to_torch_trace
from graphopt.run.graphs.call_key import CallKey
from graphopt.run.graphs.dynamo_graph import DynamoGraph

logger = logging.getLogger("graphopt")


@dataclass(frozen=True)
class MeasuredKernels:
    """Kernels that were compiled for a call: what they take beside its plan (below 0: less), and what it took."""

    beside_bytes: int
    rounds: int
    compile_seconds: float


@dataclass(frozen=True, eq=False)
class CallPlan:
    """What is in force: the graphs of a call in the order in which they run, one may come twice, and the plan of each.

    `key` says for which calls. `resident_bytes` says what is there beside them, by kind; `plan_seconds` is how long
    planning took. `kernels` is None where eager's run.
    """

    key: CallKey
    graphs: tuple[DynamoGraph, ...]
    planned: tuple[PlannedGraph, ...]
    resident_bytes: Mapping[str, int]
    plan_seconds: float
    kernels: MeasuredKernels | None = None

    @cached_property
    def peak_bytes(self) -> int:
        """The most that is there at once, resident or not."""
        studies, schedules = [each.study for each in self.planned], [each.schedule for each in self.planned]
        beside_bytes = self.kernels.beside_bytes if self.kernels is not None else 0
        return sum(self.resident_bytes.values()) + joint_peak_bytes(studies, schedules) + beside_bytes

    def plan_of(self, model: str, budget_bytes: int) -> Plan:
        """What is kept and shown of it, of a model of this name."""
        beside_bytes = self.kernels.beside_bytes if self.kernels is not None else 0
        return build_plan(model, budget_bytes, self.resident_bytes, self.planned, beside_bytes)

    @cached_property
    def saved_bytes(self) -> int:
        """What the graphs hold between their forwards and their backwards."""
        return sum(saved_bytes(each.study, each.schedule) for each in self.planned)


def in_the_place_of(
    call: CallPlan, position: int, study: GraphStudy, budget_bytes: int, choice: Choice
) -> PlannedGraph:
    """A graph that was captured anew, planned for the place of another one (or behind the last) while all others stay.

    Raises BudgetError where it has no schedule that fits beside theirs.
    """
    room = Room(budget_bytes, call.resident_bytes)
    study = study.as_in(call.planned[position].study, choice) if position < len(call.planned) else study
    studies = [graph.study for graph in call.planned]
    schedules = [graph.schedule for graph in call.planned]
    studies[position : position + 1] = [study]
    for candidate in reversed(study.curve_by(choice.planner)):
        schedules[position : position + 1] = [candidate.schedule]
        if joint_peak_bytes(studies, schedules) <= room.own_bytes:
            return plan_graph(study, candidate.peak_bytes, choice)
    schedules[position : position + 1] = [study.curve[0].schedule]
    least = joint_peak_bytes(studies, schedules)
    raise budget_error([study], least, budget_bytes, call.resident_bytes, choice.planner, choice.numerics)


def with_piece(call: CallPlan, position: int, graph: DynamoGraph, planned: PlannedGraph) -> CallPlan:
    """The call with another graph at that place (or behind the last)."""
    graphs, plans = list(call.graphs), list(call.planned)
    graphs[position : position + 1] = [graph]
    plans[position : position + 1] = [planned]
    return replace(call, graphs=tuple(graphs), planned=tuple(plans))


def log_plan(call: CallPlan, model: str, budget_bytes: int) -> None:
    """One line for a plan that was made, with what it is for; all of it where PyTorch keeps a log of compilations."""
    key = call.key
    beside = {
        "gradients that are added to": key.adds,
        "gradients that are kept beside new ones": key.keeps,
        "forwards that wait for their backward": key.behind,
        f"{len(key.pattern)} forwards before a backward": bool(key.pattern),
    }
    circumstances = ", ".join(what for what, is_so in beside.items() if is_so)
    logger.info(
        "planned %d graph(s) in %.2f s: %s at the peak, %s of it resident%s",
        len(call.graphs),
        call.plan_seconds,
        format_bytes(call.peak_bytes),
        format_bytes(sum(call.resident_bytes.values())),
        f"; with {circumstances}" if circumstances else "",
    )
    log_to_torch_trace(
        lambda: build_report(call.plan_of(model, budget_bytes), call.planned, call.plan_seconds),
        lambda: timeline_of_call(call.plan_of(model, budget_bytes), call.planned),
    )
