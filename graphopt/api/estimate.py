"""Does a model fit, and what does it cost? Answered for every budget, before a single step is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from graphopt.api.optimize import plan_model
from graphopt.base.errors import BudgetError
from graphopt.base.units import UNLIMITED_BYTES, Budget, format_bytes, parse_bytes
from graphopt.device.snapshot import generators_kept
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.resident import device_total_bytes
from graphopt.plan.shares import joint_curve, joint_peak_bytes
from graphopt.report.sweep import sweep_text

#: Budgets at which a model of several graphs is looked at; the curve of one graph is known at all of them.
_BUDGETS = 24


@dataclass(frozen=True)
class Estimate:
    """What a training step of a model takes at every budget; `str()` is a table of it.

    `points` are (peak bytes, extra time over eager as a fraction, planner): peaks increase, times
    strictly decrease. All bytes are in the budget's own measure, everything on the device;
    `eager_peak_bytes` is that of the captured graph as it was traced, with nothing recomputed: no step is run.
    `resident_bytes` says what is there before a step starts, by kind.
    """

    model: str
    device: str
    points: tuple[tuple[int, float, str], ...]
    eager_peak_bytes: int
    resident_bytes: Mapping[str, int]

    @property
    def minimum_bytes(self) -> int:
        """The least budget in which the model trains."""
        return self.points[0][0]

    def fits(self, mem_budget: Budget) -> bool:
        """Whether the model trains inside `mem_budget` ("8GiB", "80%" of the device, or bytes)."""
        return self.minimum_bytes <= self._bytes(mem_budget)

    def overhead_at(self, mem_budget: Budget) -> float:
        """Predicted extra time over eager at a budget, a fraction; raises BudgetError below the minimum."""
        return self._at(mem_budget)[1]

    def peak_at(self, mem_budget: Budget) -> int:
        """The bytes that the plan for a budget would use of it; raises BudgetError below the minimum."""
        return self._at(mem_budget)[0]

    def __str__(self) -> str:
        return self.text()

    def text(self, color: bool = False) -> str:
        """The curve and a table of it for a terminal."""
        resident = ", ".join(f"{kind} {format_bytes(size)}" for kind, size in self.resident_bytes.items() if size)
        curve = sweep_text(self.model, self.points, self.eager_peak_bytes, color=color)
        return f"{curve}\nresident before a step, on {self.device}: {resident or 'none'}"

    def _at(self, mem_budget: Budget) -> tuple[int, float, str]:
        budget_bytes = self._bytes(mem_budget)
        if budget_bytes >= self.eager_peak_bytes:  # as it was captured, though another order may save a few bytes
            return self.eager_peak_bytes, 0.0, "none"
        fitting = [point for point in self.points if point[0] <= budget_bytes]
        if not fitting:
            raise BudgetError(
                f"{format_bytes(budget_bytes)} ({budget_bytes:,} bytes) is too small: {self.model} needs at least "
                f"{format_bytes(self.minimum_bytes)} ({self.minimum_bytes:,} bytes)",
                self.minimum_bytes,
            )
        return fitting[-1]

    def _bytes(self, mem_budget: Budget) -> int:
        return parse_bytes(mem_budget, device_total_bytes(torch.device(self.device)))


@generators_kept()
def estimate(
    model: nn.Module,
    example_inputs: Any,
    loss_fn: Callable[..., Any] | None = None,
    *,
    cost_model: str = "auto",
    reserve: Budget = 0,
    optimizer: torch.optim.Optimizer | None = None,
) -> Estimate:
    """The whole memory/time curve of a model's training step; the model stays as it is, no step is run.

    The arguments are those of `optimize()`; the last of several inputs is the loss function's
    target. Raises CaptureError where the model cannot be captured, UsageError for arguments that
    cannot be used.
    """
    options: dict[str, Any] = {"cost_model": cost_model, "reserve": reserve, "optimizer": optimizer}
    call = plan_model(model, example_inputs, loss_fn, mem_budget=UNLIMITED_BYTES, **options).in_force
    studies = [planned.study for planned in call.planned]
    resident = sum(call.resident_bytes.values())
    eager_seconds = sum(study.eager.seconds for study in studies) or 1.0
    points = [
        (resident + peak_bytes, max(seconds / eager_seconds - 1, 0.0), planner)
        for peak_bytes, seconds, planner in _curve(studies)
    ]
    return Estimate(
        model=type(model).__name__,
        device=str(studies[0].graph.step.device),
        points=tuple(points),
        eager_peak_bytes=resident + joint_peak_bytes(studies, [study.graph.captured_schedule for study in studies]),
        resident_bytes=dict(call.resident_bytes),
    )


def _curve(studies: Sequence[GraphStudy]) -> list[tuple[int, float, str]]:
    """Own peak bytes, seconds and planner, peaks increasing and seconds decreasing."""
    if len(studies) == 1:
        return [(point.peak_bytes, point.seconds, point.planner) for point in studies[0].curve]
    return [(point.peak_bytes, point.seconds, "auto") for point in joint_curve(studies, _BUDGETS)]
