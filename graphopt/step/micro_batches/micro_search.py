"""Which operator of a micro-batch took more than its plan says: see `run/watch/scratch_search.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import fx, nn

from graphopt.plan.found_scratch import SearchedGraph, StepAbovePlan
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.other_sizes import GraphAtSizes
from graphopt.problem.found_scratch import FoundScratch
from graphopt.problem.schedule import Schedule
from graphopt.run.watch.causes import IN_GRAPHS
from graphopt.run.watch.scratch_search import Located, ScratchSearch
from graphopt.step.memory import PlannedMicro, StepMemory
from graphopt.step.micro_batches.micro_graph import Micro


class MicroSearch:
    """Runs the graphs of micro-batches node by node, behind a step that was above its plan."""

    def __init__(self, memory: StepMemory) -> None:
        self._memory, self._search = memory, ScratchSearch()
        self._micros: list[Micro] = []
        self._searched: dict[nn.Module, GraphAtSizes] = {}

    @property
    def found(self) -> tuple[FoundScratch, ...]:
        """The operators that took more than planned, as far as they were found."""
        return tuple(self._search.found.values())

    @property
    def is_running(self) -> bool:
        """Whether operators are looked for."""
        return self._search.is_running

    def step_begins(self, micros: Sequence[Micro]) -> None:
        """A step of these micro-batches begins, which are planned."""
        self._micros = list(dict.fromkeys(micros))
        self._searched = {micro.module: micro.graph.at_sizes for micro in micros} if self.is_running else {}

    def run(self, module: fx.GraphModule, run: Callable[..., Any], args: list[Any]) -> Any:
        """Run a micro-batch's graph, as `run` does or node by node."""
        at_sizes = self._searched.get(module)
        return run(args) if at_sizes is None else self._search.run(at_sizes, module, args)

    def begins(self, planned: PlannedMicro, above_bytes: int) -> None:
        """The step was so much above what is planned for the micro-batch with the highest peak, in graphs."""
        self._search.begins(self._above_plan(planned, above_bytes))

    def step_ends(self, planned: PlannedMicro, above_bytes: int) -> Located | None:
        """A step was so much above its plan: what it shows, where its graphs ran node by node."""
        if not self._searched:
            return None
        beside_bytes = sum(planned.resident_bytes.values()) - planned.resident_bytes.get(IN_GRAPHS, 0)
        return self._search.ends_step(self._above_plan(planned, above_bytes), self._memory.budget_bytes - beside_bytes)

    def ends(self) -> None:
        """Look no further."""
        self._search.ends()

    def _above_plan(self, planned: PlannedMicro, above_bytes: int) -> StepAbovePlan:
        graphs = tuple(
            SearchedGraph(micro.graph.at_sizes, micro.planned, partial(_study_of, micro), micro.forget_known)
            for micro in self._micros
        )
        return StepAbovePlan(graphs, above_bytes + planned.resident_bytes.get(IN_GRAPHS, 0), _highest_peak_bytes)


def _study_of(micro: Micro) -> GraphStudy:
    return micro.study


def _highest_peak_bytes(studies: Sequence[GraphStudy], schedules: Sequence[Schedule]) -> int:
    """Micro-batches run one after the other, and hold nothing for each other."""
    return max(study.peak_bytes(schedule) for study, schedule in zip(studies, schedules, strict=True))
