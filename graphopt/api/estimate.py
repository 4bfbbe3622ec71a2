"""Does a model fit, and what does it cost? Answered for every budget, before a single step is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from graphopt.api.optimize import plan_model
from graphopt.api.sized_estimate import SizedEstimate, sized
from graphopt.base.errors import BudgetError, UsageError
from graphopt.base.units import UNLIMITED_BYTES, Budget, format_bytes, parse_bytes
from graphopt.device.snapshot import generators_kept
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.resident import device_total_bytes
from graphopt.plan.shares import joint_curve, joint_peak_bytes
from graphopt.problem.kinds import kind_words
from graphopt.report.formula import Formula
from graphopt.report.grid import GridPoint
from graphopt.report.notebook import estimate_glance
from graphopt.report.sweep import sweep_text

#: Budgets at which a model of several graphs is looked at; the curve of one graph is known at all of them.
_BUDGETS = 24


@dataclass(frozen=True)
class Estimate:
    """What a training step of a model takes at every budget; `str()` is a table of it.

    `points` are (peak bytes, extra time over eager as a fraction, planner): peaks increase, times
    strictly decrease. All bytes are in the budget's own measure, everything on the device;
    `eager_peak_bytes` is that of the captured graph as it was traced, with nothing recomputed: no step is run.
    `resident_bytes` says what is there before a step starts, by kind. Where sizes have names, each
    question may be asked at any of them: `fits("8GiB", batch=16)`.
    """

    model: str
    device: str
    points: tuple[tuple[int, float, str], ...]
    eager_peak_bytes: int
    resident_bytes: Mapping[str, int]
    by_size: SizedEstimate | None = field(default=None, repr=False, compare=False)

    @property
    def minimum_bytes(self) -> int:
        """The least budget in which the model trains."""
        return self.points[0][0]

    @property
    def formula(self) -> Formula:
        """The step's bytes and operations in closed form; raises UsageError without `dynamic`."""
        return self._forms("formula").formula

    def peak(self, **sizes: int) -> int:
        """Eager's peak at these sizes, by the formula; sizes that are not named are those of the example.

        Raises UsageError for sizes that the capture does not serve, and without `dynamic`.
        """
        forms = self._forms("peak")
        return forms.eager_bytes(forms.complete(sizes))

    def minimum(self, **sizes: int) -> int:
        """The least budget at these sizes, as `peak`."""
        forms = self._forms("minimum")
        return forms.minimum_bytes(forms.complete(sizes))

    def most(self, name: str, mem_budget: Budget, *, eager: bool = False, **others: int) -> int:
        """The largest size of that name that trains inside a budget, 0 where none does; others as in `peak`.

        `eager` asks for the largest with nothing recomputed. Planners are asked anew at what is found.
        """
        forms = self._forms("most")
        return forms.most(name, self.bytes_of(mem_budget), forms.complete(others, name), eager=eager)

    def max_batch(self, mem_budget: Budget, *, eager: bool = False, **others: int) -> int:
        """As `most`, of the size named "batch"."""
        return self.most("batch", mem_budget, eager=eager, **others)

    def max_length(self, mem_budget: Budget, *, eager: bool = False, **others: int) -> int:
        """As `most`, of the size named "length"."""
        return self.most("length", mem_budget, eager=eager, **others)

    def formula_in(self, ranges: Mapping[str, tuple[int, int]]) -> Formula:
        """The same formula, shown for these ranges of sizes."""
        return self._forms("formula").formula_up_to({**self._forms("formula").around, **ranges})

    def grid(self, sizes: Sequence[Mapping[str, int]], mem_budget: Budget | None = None) -> list[GridPoint]:
        """What a step takes at each of these sizes, with the price in a budget, without sizes that are not served."""
        forms, budget = self._forms("grid"), None if mem_budget is None else self.bytes_of(mem_budget)
        served = [each for each in sizes if not forms.graph.refusal({**forms.graph.sizes, **each})]
        for each in served:  # what planners find at one size may be the best at another, before or behind it
            forms.plan_for(forms.complete(each), budget)
        return [forms.point(each, budget) for each in served]

    def fits(self, mem_budget: Budget, **sizes: int) -> bool:
        """Whether the model trains inside `mem_budget` ("8GiB", "80%" of the device, or bytes), at these sizes."""
        return (self.minimum(**sizes) if sizes else self.minimum_bytes) <= self.bytes_of(mem_budget)

    def overhead_at(self, mem_budget: Budget, **sizes: int) -> float:
        """Predicted extra time over eager at a budget, a fraction; raises BudgetError below the minimum."""
        return self._at(mem_budget, sizes)[1]

    def peak_at(self, mem_budget: Budget, **sizes: int) -> int:
        """The bytes that the plan for a budget would use of it; raises BudgetError below the minimum."""
        return self._at(mem_budget, sizes)[0]

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return (
            f"<Estimate of {self.model} on {self.device}: from {format_bytes(self.minimum_bytes)} "
            f"({self.points[0][1]:+.1%} time) to {format_bytes(self.eager_peak_bytes)}, {len(self.points)} plans>"
        )

    def _repr_html_(self) -> str:
        return estimate_glance(self.model, self.device, self.points, self.eager_peak_bytes)

    def text(self, color: bool = False) -> str:
        """The curve and a table of it for a terminal."""
        resident = ", ".join(
            f"{kind_words(kind)} {format_bytes(size)}" for kind, size in self.resident_bytes.items() if size
        )
        curve = sweep_text(self.model, self.points, self.eager_peak_bytes, color=color)
        formula = f"\n\n{self.formula}" if self.by_size is not None else ""
        return f"{curve}\nresident before a step, on {self.device}: {resident or 'none'}{formula}"

    def _forms(self, what: str) -> SizedEstimate:
        if self.by_size is None:
            raise UsageError(f"{what} needs the names of sizes: estimate(..., dynamic={{'batch': 0, 'length': 1}})")
        return self.by_size

    def _at(self, mem_budget: Budget, sizes: Mapping[str, int]) -> tuple[int, float, str]:
        budget_bytes = self.bytes_of(mem_budget)
        if sizes:
            forms = self._forms("sizes")
            complete = forms.complete(sizes)
            found = forms.within(budget_bytes, complete)
            if found is None:
                raise self._too_small(budget_bytes, forms.minimum_bytes(complete))
            return found.peak_bytes, found.overhead, "auto"
        if budget_bytes >= self.eager_peak_bytes:  # as it was captured, though another order may save a few bytes
            return self.eager_peak_bytes, 0.0, "none"
        fitting = [point for point in self.points if point[0] <= budget_bytes]
        if not fitting:
            raise self._too_small(budget_bytes, self.minimum_bytes)
        return fitting[-1]

    def _too_small(self, budget_bytes: int, minimum_bytes: int) -> BudgetError:
        return BudgetError(
            f"{format_bytes(budget_bytes)} ({budget_bytes:,} bytes) is too small: {self.model} needs at least "
            f"{format_bytes(minimum_bytes)} ({minimum_bytes:,} bytes)",
            minimum_bytes,
        )

    def bytes_of(self, mem_budget: Budget) -> int:
        """A budget in bytes; raises BudgetParseError."""
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
    dynamic: Mapping[str, int | Mapping[int | str, int]] | None = None,
) -> Estimate:
    """The whole memory/time curve of a model's training step; the model stays as it is, no step is run.

    The arguments are those of `optimize()`; the last of several inputs is the loss function's
    target. `dynamic` names dimensions of the inputs, as in {"batch": 0, "length": 1}, or of single ones by
    place or keyword, as in {"side": {"images": 2, "masks": 1}}: the answers are then there at all sizes,
    in closed form. Raises CaptureError where the model cannot be captured, or a
    named size cannot change, UsageError for arguments that cannot be used.
    """
    if dynamic is not None and not (isinstance(dynamic, Mapping) and dynamic and all(map(_is_name, dynamic))):
        raise UsageError(f"dynamic: expected a dimension for each name, as in {{'batch': 0}}, got {dynamic!r}")
    options: dict[str, Any] = {"cost_model": cost_model, "reserve": reserve, "optimizer": optimizer}
    call = plan_model(model, example_inputs, loss_fn, mem_budget=UNLIMITED_BYTES, dynamic=dynamic, **options).in_force
    studies = [planned.study for planned in call.planned]
    resident = sum(call.resident_bytes.values())
    eager_seconds = sum(study.origin.eager.seconds for study in studies) or 1.0
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
        by_size=None if dynamic is None else sized(call, example_inputs, dynamic),
    )


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier()


def _curve(studies: Sequence[GraphStudy]) -> list[tuple[int, float, str]]:
    """Own peak bytes, seconds and planner, peaks increasing and seconds decreasing."""
    if len(studies) == 1:
        return [(point.peak_bytes, point.seconds, point.planner) for point in studies[0].curve]
    return [(point.peak_bytes, point.seconds, "auto") for point in joint_curve(studies, _BUDGETS)]
