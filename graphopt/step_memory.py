"""What a training step holds beside its micro-batches' own values, and planning in what is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from graphopt.errors import UsageError
from graphopt.optimizer_view import OptimizerView
from graphopt.pipeline import plan_within
from graphopt.plan import Plan
from graphopt.planned import CapturedGraph, Choice, PlannedGraph
from graphopt.resident import other_bytes, resident_of_model
from graphopt.stepgraph import allocated_bytes

#: A budget that nothing exceeds.
UNLIMITED_BYTES = 1 << 62


class StepMemory:
    """The bytes of one training step: plans each micro-batch graph, and sums up the whole."""

    def __init__(
        self, model: nn.Module, view: OptimizerView, choice: Choice, budget_bytes: int, reserve_bytes: int, summed: bool
    ) -> None:
        self.model, self.view, self.choice = model, view, choice
        self.budget_bytes, self.reserve_bytes = budget_bytes, reserve_bytes
        self.summed = summed
        self.batch: object = ()
        self.planned: list[PlannedGraph] = []
        self.resident_bytes: dict[str, int] = {}
        first = next(iter((*model.parameters(), *model.buffers())), None)
        self.device = first.device if first is not None else torch.device("cpu")

    def plan(self, captured: CapturedGraph, inputs: Sequence[Any]) -> PlannedGraph:
        """Plan a micro-batch graph inside what the budget leaves it; raises BudgetError where it cannot be."""
        self.resident_bytes = self.resident(inputs)
        planned = plan_within(captured, self.budget_bytes, self.resident_bytes, self.choice)
        self.planned.append(planned)
        return planned

    def resident(self, inputs: Sequence[Any]) -> dict[str, int]:
        """Bytes by kind of what is there while a micro-batch runs."""
        view, device = self.view, self.device
        kinds = resident_of_model(self.model, self.batch, device)
        kinds["optimizer"] = view.state_bytes()
        kinds["masters"] = sum(allocated_bytes(m.nbytes, device) for m in view.masters.values())
        kinds["gradients"] = self.summed_bytes(inputs) if self.summed else 0
        kinds["reserve"] = self.reserve_bytes
        kinds["other"] = other_bytes(self.model, self.batch, view.optimizer, device)
        return {kind: size for kind, size in kinds.items() if size or kind in ("parameters", "inputs")}

    def summed_bytes(self, inputs: Sequence[Any]) -> int:
        """Bytes of the accumulators: float32 for half parameters."""
        trained = {id(p): p for p in inputs if self.view.trains(p)}.values()
        return sum(allocated_bytes(p.numel() * max(4, p.itemsize), self.device) for p in trained)

    def build_plan(self, name: str) -> Plan:
        """The plan of the step; raises UsageError before anything is captured."""
        if not self.planned:
            raise UsageError("nothing is planned yet: call the step, or give train_step() example_inputs")
        resident = sum(self.resident_bytes.values())
        graphs = [planned.captured for planned in self.planned]
        return Plan(
            model=name,
            device=str(self.device),
            torch_version=torch.__version__,
            budget_bytes=self.budget_bytes,
            peak_bytes=resident + max(planned.plan.peak_bytes for planned in self.planned),
            eager_peak_bytes=resident + max(graph.eager.peak_bytes for graph in graphs),
            minimum_bytes=resident + max(graph.minimum_bytes for graph in graphs),
            resident_bytes=dict(self.resident_bytes),
            graphs=tuple(planned.plan for planned in self.planned),
        )
