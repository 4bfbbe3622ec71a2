"""Which ops of planned graphs took more in a step than their prices say, and what of the step's peak that explains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from graphopt.graph.captured_graph import CapturedGraph, TakenByOp
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.other_sizes import GraphAtSizes
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.problem.found_scratch import FoundScratch
from graphopt.problem.schedule import Schedule


@dataclass(frozen=True, eq=False)
class SearchedGraph:
    """A graph as it is planned; `study` has what is known of it now, made anew behind `forget_study`."""

    at_sizes: GraphAtSizes
    planned: PlannedGraph
    study: Callable[[], GraphStudy]
    forget_study: Callable[[], None]

    def study_in_form(self) -> GraphStudy:
        """What is known of it now, in the form in which it is planned."""
        return self.study().as_in(self.planned.study, self.planned.choice)


@dataclass(frozen=True, eq=False)
class StepAbovePlan:
    """The graphs of a step, in order, and by how much it was measured above what is planned for them.

    `peak_of` is the peak of studies with these schedules, as the step runs them.
    """

    graphs: tuple[SearchedGraph, ...]
    above_bytes: int
    peak_of: Callable[[Sequence[GraphStudy], Sequence[Schedule]], int]

    def unexplained_bytes(self) -> int:
        """What of it is still above, by what is known of the graphs now; below 0 where that says more."""
        before = [each.planned.study for each in self.graphs]
        now = [each.study_in_form() for each in self.graphs]
        schedules = [each.planned.schedule for each in self.graphs]
        return self.above_bytes + self.peak_of(before, schedules) - self.peak_of(now, schedules)

    def least_bytes(self) -> int:
        """The least that the graphs take together, by what is known of them now."""
        studies = [each.study() for each in self.graphs]
        planners = [each.planned.choice.planner for each in self.graphs]
        least = [study.curve_by(planner)[0].schedule for study, planner in zip(studies, planners, strict=True)]
        return self.peak_of(studies, least)


def more_than_planned(graph: CapturedGraph, taken: Mapping[str, TakenByOp]) -> dict[str, TakenByOp]:
    """The ops that took more than their prices say; storages only where what an op left is more than its outputs."""
    found = {}
    for op, info in zip(graph.problem.ops, graph.step.ops, strict=True):
        seen = taken.get(info.name)
        if info.node is None or seen is None:
            continue
        left_more = seen.left_bytes > sum(graph.problem.values[value].bytes for value in op.outputs)
        if seen.scratch_bytes > op.workspace_bytes or left_more:
            found[info.name] = seen if left_more else replace(seen, storage_bytes=())
    return found


def found_scratch(graph: CapturedGraph, more: Mapping[str, TakenByOp]) -> list[FoundScratch]:
    """The same in words."""
    found = []
    for op, info in zip(graph.problem.ops, graph.step.ops, strict=True):
        if (seen := more.get(info.name)) is None:
            continue
        own_bytes = sum(graph.problem.values[value].bytes for value in op.outputs)
        planned_bytes, taken_bytes = op.workspace_bytes + own_bytes, seen.scratch_bytes + seen.left_bytes
        if taken_bytes > planned_bytes:
            found.append(FoundScratch(info.name, info.module_path, info.source, planned_bytes, taken_bytes))
    return found
