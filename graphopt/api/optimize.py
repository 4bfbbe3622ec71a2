"""What users call: optimize a model, or plan, verify and sweep one without changing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import fx, nn

from graphopt.base.errors import BudgetError, PlanMismatchError, UsageError
from graphopt.base.units import parse_bytes
from graphopt.cost_models.model_state import optimizer_bytes
from graphopt.device import measure
from graphopt.device.snapshot import restore, snapshot, training_mode
from graphopt.device.storages import tensors_in
from graphopt.plan.captured import Choice
from graphopt.plan.resident import check_devices, device_total_bytes
from graphopt.problem.plan import Plan
from graphopt.report.build import build_plan, build_report
from graphopt.report.data import Measured, Report
from graphopt.run.loss_module import StepModule, as_call
from graphopt.run.session import Request, Session
from graphopt.run.wrapping import check_unwrapped
from graphopt.verify.compare import compare_with_eager
from graphopt.verify.step_result import loss_of

Budget = int | float | str


class Optimized:
    """What `optimize()` leaves at `model.graphopt`: the plan, its report, the graphs, and the way back."""

    def __init__(self, model: nn.Module, session: Session) -> None:
        self._model = model
        self._session = session
        self._verified: Measured | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # a copied or pickled model is a plain one
        return (_nothing, ())

    @property
    def plan(self) -> Plan:
        """The plan in force, the last one made; raises UsageError before the first training call."""
        session = self._session
        if not session.planned:
            raise UsageError(
                "nothing is planned yet: call the model in training mode, or give optimize() example_inputs"
            )
        inner = self._model.model if isinstance(self._model, StepModule) else self._model
        name = type(inner).__name__
        return build_plan(name, session.request.budget_bytes, session.resident_bytes, session.planned)

    @property
    def report(self) -> Report:
        """The report of the plan in force; `print` it."""
        report = build_report(self.plan, self._session.planned, self._session.plan_seconds)
        return replace(report, measured=self._verified)

    @property
    def graph_modules(self) -> tuple[tuple[fx.GraphModule, fx.GraphModule], ...]:
        """(forward, backward) of every planned graph."""
        return tuple((graph.emitted.forward, graph.emitted.backward) for graph in self._session.planned)

    @property
    def graph_module(self) -> fx.GraphModule:
        """The forward GraphModule of the (first) planned graph."""
        self.plan  # noqa: B018  raises where there is none
        return self.graph_modules[0][0]

    def restore(self) -> nn.Module:
        """Make the model what it was before `optimize()`; returns it."""
        self._model._compiled_call_impl = None
        del self._model.graphopt
        return self._model


@dataclass(frozen=True)
class Verification:
    """What a comparison with eager found; it raises where they differ."""

    equal: bool
    bitwise: bool
    lines: tuple[str, ...]
    report: Report


def optimize(
    model: nn.Module,
    mem_budget: Budget | None = None,
    *,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    planner: str = "auto",
    cost_model: str = "auto",
    reserve: Budget = 0,
    optimizer: torch.optim.Optimizer | None = None,
    plan: Plan | str | Path | None = None,
    plan_seconds: float = 0.0,
    verify: bool = False,
    group: dist.ProcessGroup | None = None,
) -> nn.Module:
    """Make `model`'s training steps run inside `mem_budget` bytes of its device's memory.

    Returns the same object; class, parameters and state_dict stay, the training loop does not
    change. `mem_budget` is "8GiB", "8GB", "80%" of the device or a number of bytes, and counts
    everything on the device during a step: parameters, buffers, inputs, gradients, activations, op
    workspace, the state of `optimizer` if one is given, and `reserve` for what else is there. With
    `example_inputs` (a tensor, tuple or dict of keyword inputs) it captures and plans at once;
    without, at the first training call. Every new set of shapes is planned anew. `plan_seconds` is
    time to look for a faster plan than the planner's, each time that one is made. `plan` is a kept
    plan (or its file) to use instead of planning: at its own budget, or at another one. `verify`
    compares with eager, at once where inputs are given.

    Several processes (torch.distributed) agree on one plan: those of `group`, by default those that
    DDP or FSDP2 joins at the first training call inside of it, and all of them when `example_inputs`
    are given, which makes this call a collective one. Wrap or shard the model after this call.

    Raises BudgetError below the minimum, CaptureError, PlanMismatchError for a plan of another
    graph, VerificationError, UsageError and BudgetParseError for arguments that cannot be used.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"optimize() takes an nn.Module, got {type(model).__name__}")
    check_unwrapped(model)
    before = getattr(model, "graphopt", None)
    if isinstance(before, Optimized):
        before.restore()
    kept = _load(plan)
    choice = Choice(planner, cost_model, {g.graph_hash: g for g in kept.graphs} if kept else None, plan_seconds)
    session = Session(model, _request(model, mem_budget, choice, reserve, optimizer, kept, group))
    handle = Optimized(model, session)
    args, kwargs = as_call(example_inputs, example_kwargs)
    check_devices(model, (args, kwargs))
    if args or kwargs:
        session.plan(args, kwargs)
    if verify:
        if not (args or kwargs):
            raise UsageError("verify=True needs example_inputs (or example_kwargs) to compare with eager on")
        compare_with_eager(session, args, kwargs)
    model._compiled_call_impl = session
    model.graphopt = handle  # type: ignore[assignment]
    return model


def plan_model(
    model: nn.Module,
    example_inputs: Any,
    loss_fn: Callable[..., Any] | None = None,
    *,
    mem_budget: Budget,
    **options: Any,
) -> Optimized:
    """Plan one training step of `model` and its loss; the model itself stays as it is.

    `options` are those of `optimize()`. The last of several inputs is the loss function's target.
    """
    module = StepModule(model, loss_fn)
    optimize(module, mem_budget, example_inputs=example_inputs, **options)
    return module.graphopt  # type: ignore[return-value]


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
    compared = compare_with_eager(handle._session, args, kwargs)
    handle._verified = measure_step(module, handle._session, args, kwargs, time_rounds)
    report = handle.report
    if handle._verified.peak_bytes > report.plan.budget_bytes - handle._session.request.reserve_bytes:
        raise BudgetError(
            f"measured {handle._verified.peak_bytes:,} bytes, more than the budget of {report.plan.budget_bytes:,}; "
            f"{report.plan.peak_bytes:,} were predicted. This is a fault of graphopt: please report it",
            report.plan.minimum_bytes,
        )
    return Verification(True, compared.bitwise, compared.lines, report)


def measure_step(
    model: nn.Module, session: Session, args: tuple[Any, ...], kwargs: Mapping[str, Any], time_rounds: int
) -> Measured:
    """Peak bytes of an optimized and an eager step from outside, and the ratio of their times.

    Buffers and generators are put back; gradients are gone, as a step's peak is without them.
    """
    resident = [*model.parameters(), *model.buffers(), *tensors_in([args, dict(kwargs)])]
    device = session.planned[0].captured.step.device

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

    before = snapshot(model)
    try:
        with training_mode(model):
            optimized, eager = step(session), step(model._call_impl)
            peak_bytes, eager_peak_bytes = measured(optimized), measured(eager)
            ratio = measure.ratio(optimized, eager, time_rounds).median if time_rounds else None
        return Measured(peak_bytes, eager_peak_bytes, ratio)
    finally:
        model.zero_grad(set_to_none=True)
        restore(model, before)


def _request(
    model: nn.Module,
    mem_budget: Budget | None,
    choice: Choice,
    reserve: Budget,
    optimizer: torch.optim.Optimizer | None,
    kept: Plan | None,
    group: dist.ProcessGroup | None,
) -> Request:
    if mem_budget is None:
        if kept is None:
            raise UsageError("name a budget: optimize(model, mem_budget='8GiB')")
        mem_budget = kept.budget_bytes
    total = device_total_bytes(_device(model))
    if optimizer is not None:
        optimizer_bytes(optimizer)  # an optimizer whose state cannot be known is refused here
    return Request(
        budget_bytes=parse_bytes(mem_budget, total),
        choice=choice,
        reserve_bytes=parse_bytes(reserve, total) if reserve else 0,
        optimizer=optimizer,
        group=group,
    )


def _load(plan: Plan | str | Path | None) -> Plan | None:
    if plan is None or isinstance(plan, Plan):
        return plan
    if not isinstance(plan, (str, Path)):
        raise PlanMismatchError(f"plan takes a Plan or the path of one, got {type(plan).__name__}")
    return Plan.load(plan)


def _device(model: nn.Module) -> torch.device:
    first = next(iter((*model.parameters(), *model.buffers())), None)
    return first.device if first is not None else torch.device("cpu")


def _nothing() -> None:
    return None
