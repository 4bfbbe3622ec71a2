"""`optimize()`: make a model's training steps run inside a number of bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parameter import is_lazy

from graphopt.api.optimized import Optimized
from graphopt.api.shortened import shortened
from graphopt.base.errors import CaptureError, PlanMismatchError, UsageError
from graphopt.base.units import Budget, parse_bytes
from graphopt.capture.changing_sizes import Dynamic, dynamic_with
from graphopt.capture.check_tensors import check_inputs
from graphopt.capture.mends.operators_on_meta import NO_DERIVATIVE, operators_on_meta
from graphopt.capture.repeated.periods import NotAlike
from graphopt.cost_models.model_state import optimizer_bytes
from graphopt.device.snapshot import generators_kept
from graphopt.device.storages import tensors_in
from graphopt.lower.compiler import Compiler
from graphopt.plan.choice import Choice
from graphopt.plan.numerics import Numerics
from graphopt.plan.offload.where import offload_to
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.resident import check_devices, device_total_bytes
from graphopt.problem.plan import Plan
from graphopt.run.model.loss_module import StepModule, as_call
from graphopt.run.model.request import OnExcess, Request, check_on_excess
from graphopt.run.model.wrapping import check_unwrapped
from graphopt.run.session import Session
from graphopt.verify.compare import compare_with_eager

logger = logging.getLogger("graphopt")


@generators_kept()
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
    on_excess: OnExcess = "correct",
    compiler: Compiler = "eager",
    numerics: Numerics = "bitwise",
    dynamic: Dynamic = None,
    offload: str | Path | None = None,
) -> nn.Module:
    """Make `model`'s training steps run inside `mem_budget` bytes of its device's memory.

    Returns the same object; class, parameters and state_dict stay, the training loop does not change. `mem_budget`
    is "8GiB", "8GB", "80%" of the device or a number of bytes, and counts everything on the device during a step:
    parameters, buffers, inputs, gradients, activations, op workspace, the state of `optimizer` if one is given, and
    `reserve` for what else is there. With `example_inputs` (a tensor, tuple or dict of keyword inputs) it captures
    and plans at once; without, at the first training call. From the second shape on one capture serves all: with
    `dynamic=True` from the first, `{"batch": 0, "length": 1}` for these alone, False never. `plan_seconds` is time
    to look for a faster plan than the planner's, each time that one is made. The peak of real steps is measured:
    where one is over the budget, a warning says by how much and why, and the next call is planned with that much
    less room; with `on_excess="raise"` it is a BudgetError. `compiler` says whose kernels run the plan: eager's,
    with eager's bits, or "inductor": those are faster, round otherwise, are measured before they are used, and take
    a compilation. With `numerics="reordered"` sums over rows may be added up piece by piece, so that the largest
    values (a model's logits) never exist whole. `offload` names a folder, or "file": values may then be written to a
    file there and read back, where that is faster than computing them again; sizes are then constant. `plan` is a kept
    plan (or its file) to use instead of planning, at any budget. `verify` compares with eager where inputs are given.

    Several processes (torch.distributed) agree on one plan: those of `group`, by default those that
    DDP or FSDP2 joins at the first training call inside of it, and all of them when `example_inputs`
    are given, which makes this call a collective one. Wrap or shard the model after this call.

    Raises BudgetError below the minimum, CaptureError, PlanMismatchError for a plan of another
    graph, VerificationError, UsageError and BudgetParseError for arguments that cannot be used.
    """
    check_model(model)
    kept = _load(plan)
    kept_graphs = {g.graph_hash: g for g in kept.graphs} if kept else None
    where = offload_to(offload, device_of(model))
    choice = Choice(planner, cost_model, kept_graphs, plan_seconds, compiler, numerics, where)
    check_on_excess(on_excess)
    options: dict[str, Any] = {"group": group, "on_excess": on_excess, "dynamic": dynamic_with(offload, dynamic)}
    request = replace(_request(model, mem_budget, choice, reserve, optimizer, kept), **options)
    args, kwargs = _checked_call(model, example_inputs, example_kwargs, verify=verify)
    session = Session(restored(model), request)
    if args or kwargs:
        session.plan(args, kwargs)  # capture -> problem -> plan -> emit
    if verify:
        compare_with_eager(session, args, kwargs)
    return in_front_of(model, session)


def _checked_call(
    model: nn.Module, example_inputs: Any, example_kwargs: Mapping[str, Any] | None, *, verify: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = as_call(example_inputs, example_kwargs)
    check_inputs(tensors_in((args, kwargs)))
    check_devices(model, (args, kwargs))
    if verify and not (args or kwargs):
        raise UsageError("verify=True needs example_inputs (or example_kwargs) to compare with eager on")
    return args, kwargs


def check_model(model: nn.Module) -> None:
    """Raise UsageError where the model cannot be optimized."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"optimize() takes an nn.Module, got {type(model).__name__}")
    check_unwrapped(model)
    lazy = next((name for name, each in model.named_parameters() if is_lazy(each)), None)
    if lazy is not None:
        raise UsageError(f"parameter {lazy!r} has no shape yet: call the model once, model(inputs), before optimize()")


def restored(model: nn.Module) -> nn.Module:
    """The model without what an earlier `optimize()` put in front of it."""
    before = getattr(model, "graphopt", None)
    return before.restore() if isinstance(before, Optimized) else model


def in_front_of(model: nn.Module, session: Session) -> nn.Module:
    """The model, whose calls go through the session from now on."""
    handle = Optimized(model, session)
    model._compiled_call_impl = session
    model.compile = MethodType(_refuse_to_compile, model)  # type: ignore[method-assign]
    model.graphopt = handle  # type: ignore[assignment]
    return model


def _refuse_to_compile(model: nn.Module, *args: Any, **options: Any) -> None:
    """`model.compile()`, which would put itself in front of the model in place of its session."""
    if isinstance(getattr(model, "graphopt", None), Optimized):
        raise UsageError(
            "compile() would take away the plan of a model that graphopt has optimized: drop it, as optimize() "
            "compiles the model itself; to train it without a plan, model.graphopt.restore()"
        )
    type(model).compile(model, *args, **options)  # a copy of an optimized model is a plain one


# bound methods are pickled by their names
_refuse_to_compile.__name__ = "compile"


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
    options |= {"mem_budget": mem_budget, "example_inputs": example_inputs}
    if device_of(model).type != "meta":
        optimize(module, **options)
    else:
        with operators_on_meta():
            module = _planned_on_meta(module, options)
        check_gradients_on_meta(module.graphopt.planned_graphs)  # type: ignore[union-attr,arg-type]
    return module.graphopt  # type: ignore[return-value]


def _planned_on_meta(module: StepModule, options: dict[str, Any]) -> StepModule:
    """The module, planned, or a shorter one where its layers can be shown to be alike."""
    args, kwargs = as_call(options["example_inputs"], None)
    why: NotAlike | None = None
    try:
        for short in shortened(module, args, kwargs) if options.get("plan") is None else ():
            try:
                optimize(short, **options)
                return short
            except NotAlike as error:  # of its graph, which passes may have changed in the first layers alone
                why = error
    except NotAlike as error:
        why = error
    if why is not None:
        logger.info("all layers are captured: %s", why)
    optimize(module, **options)
    return module


def check_gradients_on_meta(planned: Sequence[PlannedGraph]) -> None:
    """Raise CaptureError where no gradient came out: some operators have no derivative on the meta device."""
    if not any(each.captured.step.joint.gradients for each in planned):
        raise CaptureError(NO_DERIVATIVE)


def _request(
    model: nn.Module,
    mem_budget: Budget | None,
    choice: Choice,
    reserve: Budget,
    optimizer: torch.optim.Optimizer | None,
    kept: Plan | None,
) -> Request:
    if mem_budget is None:
        if kept is None:
            raise UsageError("name a budget: optimize(model, mem_budget='8GiB')")
        mem_budget = kept.budget_bytes
    total = device_total_bytes(device_of(model))
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if optimizer is not None:
        optimizer_bytes(optimizer)  # an optimizer whose state cannot be known is refused here
    return Request(
        budget_bytes=parse_bytes(mem_budget, total),
        choice=choice,
        reserve_bytes=parse_bytes(reserve, total) if reserve else 0,
        optimizer=optimizer,
    )


def _load(plan: Plan | str | Path | None) -> Plan | None:
    if plan is None or isinstance(plan, Plan):
        return plan
    if not isinstance(plan, (str, Path)):
        raise PlanMismatchError(f"plan takes a Plan or the path of one, got {type(plan).__name__}")
    return Plan.load(plan)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first tensor."""
    first = next(iter((*model.parameters(), *model.buffers())), None)
    return first.device if first is not None else torch.device("cpu")
