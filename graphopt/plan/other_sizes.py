"""One capture planned for many sizes: its schedules are the same, its bytes and seconds are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import sympy

from graphopt.cost_models import COST_MODELS
from graphopt.cost_models.at_sizes import CostsBySize, costs_by_size
from graphopt.graph.at_sizes import AtSizes, step_at
from graphopt.graph.captured_graph import CapturedGraph, TakenByOp, with_loss_bytes, with_taken
from graphopt.graph.step_graph import to_problem, with_storage_bytes
from graphopt.plan.choice import Choice
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.schedule_pool import SchedulePool


class GraphAtSizes:
    """A captured graph and its studies at sizes of its inputs; `captured_sizes` are those of its capture.

    `pool` is None where it serves those alone. What ops were seen to take in steps (`taken`, by name) holds at all
    sizes, for studies that are made from then on.
    """

    def __init__(self, graph: CapturedGraph, captured_sizes: Mapping[sympy.Symbol, int], choice: Choice) -> None:
        self.graph = graph
        self.pool = SchedulePool() if graph.step.has_changing_sizes else None
        self._captured_sizes, self._choice = dict(captured_sizes), choice
        self.taken: dict[str, TakenByOp] = {}

    @cached_property
    def _costs(self) -> CostsBySize:
        nodes = self.graph.step.compute_nodes
        return costs_by_size(nodes, COST_MODELS[self._choice.cost_model](nodes))

    def study(self, sizes: Mapping[sympy.Symbol, int], loss_bytes: int = 0) -> GraphStudy:
        """The graph to be planned at these sizes, with a loss outside of it that takes so many bytes."""
        as_captured = self.pool is None or dict(sizes) == self._captured_sizes
        graph = self.graph if as_captured else self._at(AtSizes(sizes))
        graph = with_taken(graph, self.taken)
        graph = with_loss_bytes(graph, loss_bytes) if loss_bytes else graph
        is_reordered = self._choice.numerics == "reordered"
        return GraphStudy(graph, self._choice.kept_plan_of(graph), self.pool, is_reordered=is_reordered)

    def _at(self, at: AtSizes) -> CapturedGraph:
        costs = self._costs.at(at)
        step = with_storage_bytes(step_at(self.graph.step, at), [cost.storage_bytes for cost in costs])
        problem = to_problem(step, [cost.seconds for cost in costs], [cost.workspace_bytes for cost in costs])
        return replace(self.graph, step=step, problem=problem)
