"""Plan a model's step, run it against eager, and measure both from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from graphopt.api.optimize import optimize
from graphopt.api.optimized import Optimized
from graphopt.base.errors import BudgetError
from graphopt.base.units import Budget
from graphopt.device import measure
from graphopt.device.snapshot import training_mode, undone
from graphopt.device.storages import tensors_in
from graphopt.report.data import Measured, Report
from graphopt.run.model.loss_module import StepModule, as_call
from graphopt.run.session import Session
from graphopt.verify.compare import compare_with_eager
from graphopt.verify.step_result import loss_of


@dataclass(frozen=True)
class Verification:
    """What a comparison with eager found; it raises where they differ."""

    equal: bool
    bitwise: bool
    lines: tuple[str, ...]
    report: Report


def verify_model(
    model: nn.Module,
    example_inputs: Any,
    loss_fn: Callable[..., Any] | None = None,
    *,
    mem_budget: Budget,
    time_rounds: int = 3,
    **options: Any,
) -> Verification:
    """Plan a step, run it against eager, and measure both from outside.

    Raises VerificationError, naming the tensor and the first diverging op, where they differ;
    BudgetError where the measured peak is over the budget.
    """
    module = StepModule(model, loss_fn)
    optimize(module, mem_budget, example_inputs=example_inputs, **options)
    handle: Optimized = module.graphopt  # type: ignore[assignment]
    args, kwargs = as_call(example_inputs, None)
    compared = compare_with_eager(handle.session, args, kwargs)
    measured = measure_step(module, handle.session, args, kwargs, time_rounds)
    handle.measured = measured
    report = handle.report
    if measured.peak_bytes > report.plan.budget_bytes - handle.session.request.reserve_bytes:
        raise BudgetError(
            f"measured {measured.peak_bytes:,} bytes, more than the budget of {report.plan.budget_bytes:,}; "
            f"{report.plan.peak_bytes:,} were predicted. This is a fault of graphopt: please report it",
            report.plan.minimum_bytes,
        )
    return Verification(True, compared.bitwise, compared.lines, report)


def measure_step(
    model: nn.Module, session: Session, args: tuple[Any, ...], kwargs: Mapping[str, Any], time_rounds: int
) -> Measured:
    """Peak bytes of an optimized and an eager step from outside, and the ratio of their times with its spread.

    Buffers and generators are put back; gradients are gone, as a step's peak is without them.
    """
    resident = [*model.parameters(), *model.buffers(), *tensors_in([args, dict(kwargs)])]
    assert session.in_force is not None
    device = session.in_force.planned[0].captured.step.device

    def step(call: Callable[..., Any]) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad(set_to_none=True)
            output = call(*args, **kwargs)
            loss_of(output).backward()

        return run

    def measured(run: Callable[[], None]) -> int:
        run()
        model.zero_grad(set_to_none=True)
        # on a CPU only what we name is resident; on CUDA the optimizer's state is already allocated
        unseen_bytes = session.request.optimizer_bytes if device.type == "cpu" else 0
        return measure.peak_bytes(run, resident, device) + unseen_bytes

    with undone(model, (args, kwargs)):
        try:
            with training_mode(model):
                optimized, eager = step(session), step(model._call_impl)
                peak_bytes, eager_peak_bytes = measured(optimized), measured(eager)
                ratio = measure.ratio(optimized, eager, time_rounds) if time_rounds else None
        finally:
            model.zero_grad(set_to_none=True)
    if ratio is None:
        return Measured(peak_bytes, eager_peak_bytes)
    quartiles = ratio.lower_quartile, ratio.upper_quartile
    return Measured(peak_bytes, eager_peak_bytes, ratio.median, quartiles, time_rounds)
