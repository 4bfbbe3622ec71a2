"""One of the blocks that share a budget: which of its schedules is in force, and when it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from graphopt.device.after_backward import after_backward
from graphopt.fsdp.step_meter import StepMeter
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.plan.block_points import BlockPoint, block_point, block_points
from graphopt.plan.chain_shares import least_points
from graphopt.plan.graph_study import GraphStudy
from graphopt.problem.problem import Value
from graphopt.problem.schedule import Schedule
from graphopt.run.model.wrapping import is_sharded
from graphopt.run.watch.sharding import heed_sharding

Run = Callable[[list[Any]], Any]
#: What tells graphs apart, at each size of their inputs: alike in all blocks that are alike.
GraphKey = tuple[str, tuple[Value, ...]]


def key_of(graph: CapturedGraph) -> GraphKey:
    """The key of a captured graph."""
    return graph.step.graph_hash, graph.problem.values


class KnownPoints:
    """The points of each graph that was met, made once for all blocks that are alike."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._known: dict[GraphKey, tuple[BlockPoint, ...]] = {}

    def of(self, graph: CapturedGraph) -> tuple[BlockPoint, ...]:
        """All points of a graph."""
        key = key_of(graph)
        if key not in self._known:
            self._known[key] = block_points(graph)
        return self._known[key]

    def least(self, graph: CapturedGraph) -> BlockPoint:
        """What it runs with before anything is known of the whole."""
        return least_points([self.of(graph)] * self._count)[0]


class Block:
    """A module that shares its budget: see `run.model.part.Part`. `number` is its place among the blocks.

    `graph` and `point` are those of the call that was run last.
    """

    def __init__(self, module: nn.Module, number: int, points: KnownPoints) -> None:
        self.module, self.number = module, number
        self.meter: StepMeter | None = None
        self.was_planned = False
        self.graph: CapturedGraph | None = None
        self.point: BlockPoint | None = None
        self._points, self._heeds = points, False
        self._chosen: dict[GraphKey, Schedule] = {}
        self._priced: dict[tuple[GraphKey, Schedule], BlockPoint] = {}

    def choose(self, key: GraphKey, point: BlockPoint) -> bool:
        """Run the graph so from now on; whether that is another schedule than before."""
        before, self._chosen[key] = self._chosen.get(key), point.schedule
        return before != point.schedule

    def schedule_of(self, study: GraphStudy) -> Schedule:
        """What was chosen for it, or what keeps the least."""
        self.was_planned = True
        chosen = self._chosen.get(key_of(study.graph))
        return chosen if chosen is not None else self._points.least(study.graph).schedule

    def arrives(self) -> None:
        """The block is called."""
        if not self._heeds and is_sharded(self.module):
            heed_sharding(self.module, self)
            self._heeds = True
        self._between()

    def departs(self) -> None:
        """The block has run."""
        self._between()

    def gradient_arrives(self, gradient: torch.Tensor) -> None:  # noqa: ARG002
        """Its parameters are about to be gathered for its backward."""
        self._between()

    def scatter_begins(self) -> None:
        """Its gradients are about to be scattered."""
        self._between()

    def scatter_ends(self) -> None:
        """They are."""
        self._between()

    def around_forward(self, run: Run, args: list[Any]) -> Any:
        """Run its forward graph. The plan that it runs by is known when its call has ended."""
        self._between()
        return run(args)

    def ran(self, study: GraphStudy, schedule: Schedule) -> None:
        """Its call was run by this plan."""
        key = key_of(study.graph), schedule
        if key not in self._priced:
            self._priced[key] = block_point(study.graph, schedule)
        self.graph, self.point = study.graph, self._priced[key]
        if self.meter is not None:
            self.meter.forward_ends(self.number, self.point)

    def around_backward(self, run: Run, args: list[Any]) -> Any:
        """Run its backward graph."""
        meter = self.meter
        if meter is None:
            return run(args)
        if meter.is_before_backward:
            after_backward(meter.pauses)  # FSDP2 has called for its own end before
        meter.between()
        result = run(args)
        meter.backward_ends(self.number)
        return result

    def _between(self) -> None:
        if self.meter is not None:
            self.meter.between()
