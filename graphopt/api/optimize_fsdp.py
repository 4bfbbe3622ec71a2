"""`optimize_fsdp()`: one budget for a model whose blocks FSDP2 shards each for itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from graphopt.api.optimize import check_model, device_of, in_front_of, restored
from graphopt.api.optimized import Optimized
from graphopt.base.errors import UsageError
from graphopt.base.units import Budget, format_bytes, parse_bytes
from graphopt.capture.changing_sizes import Dynamic
from graphopt.device.snapshot import generators_kept
from graphopt.fsdp.block import Block, KnownPoints
from graphopt.fsdp.report import whole_report
from graphopt.fsdp.whole import MeasuredWhole, Whole, WholePlan
from graphopt.plan.choice import Choice
from graphopt.plan.resident import device_total_bytes
from graphopt.run.model.request import OnExcess, Request, check_on_excess
from graphopt.run.session import Session


@generators_kept()
def optimize_fsdp(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    mem_budget: Budget,
    *,
    cost_model: str = "auto",
    reserve: Budget = 0,
    optimizer: torch.optim.Optimizer | None = None,
    group: dist.ProcessGroup | None = None,
    on_excess: OnExcess = "correct",
    dynamic: Dynamic = None,
) -> nn.Module:
    """Make the training steps of a model that FSDP2 shards block by block run inside `mem_budget` bytes on each rank.

    Call it before `fully_shard`. `blocks` are modules below `model` that run once a step, backward in the reverse
    order: those that are sharded each for itself, and others, such as an embedding or a head, which the model's own
    unit gathers. What no block has (the root's own layers, a loss, the update) runs as it did, and is measured.
    The budget counts what the rank holds at any time of a step: shards, gathered parameters, FSDP2's messages,
    gradients, activations, and what an optimizer holds.

    The first three training calls keep as little as can be; the second and the third are measured, and at the
    beginning of the fourth all ranks divide the budget alike: each block keeps for its backward what saves the most
    time. Whatever the budget, no block is planned worse than with torch's checkpoint around it. `model.graphopt` has
    `plan`, `report`, `history` and `restore()`. Other arguments are as in `optimize`; an `optimizer` given here counts
    from the first step on.

    Returns the model. Raises UsageError for what are no blocks of it, and BudgetError, from the fourth call on, where
    the least does not fit.
    """
    if isinstance(before := getattr(model, "graphopt", None), OptimizedBlocks):
        before.restore()
    check_model(model)
    check_on_excess(on_excess)
    modules = _checked_blocks(restored(model), blocks)
    device = device_of(model)
    total = device_total_bytes(device)
    points = KnownPoints(len(modules))
    parts = [Block(module, number, points) for number, module in enumerate(modules)]
    asked: dict[str, Any] = {
        "budget_bytes": parse_bytes(mem_budget, total),
        "choice": Choice("auto", cost_model),
        "reserve_bytes": parse_bytes(reserve, total) if reserve else 0,
        "optimizer": optimizer,
        "group": group,
        "on_excess": on_excess,
        "dynamic": dynamic,
    }
    sessions = [Session(restored(part.module), Request(**asked, part=part)) for part in parts]
    for part, session in zip(parts, sessions, strict=True):
        in_front_of(part.module, session)
    whole = Whole(model, parts, points, Request(**asked), device, lambda number: sessions[number].forget_plans())
    model._compiled_call_impl = whole
    model.graphopt = OptimizedBlocks(whole, sessions)  # type: ignore[assignment]
    return model


class OptimizedBlocks:
    """What `optimize_fsdp()` leaves at `model.graphopt`."""

    def __init__(self, whole: Whole, sessions: list[Session]) -> None:
        self._whole = whole
        self.sessions = sessions

    def __reduce__(self) -> tuple[Any, ...]:
        # a copied or pickled model is a plain one
        return (_nothing, ())

    def __repr__(self) -> str:
        plan, name = self._whole.plan, type(self._whole.root).__name__
        if plan is None:
            return f"<graphopt of {name}: no plan yet>"
        return (
            f"<graphopt of {name}: {len(plan.points)} blocks, {format_bytes(plan.peak_bytes)} of "
            f"{format_bytes(plan.budget_bytes)} on each rank>"
        )

    @property
    def plan(self) -> WholePlan:
        """What the blocks are planned to keep and to take; raises UsageError before the fourth training call."""
        if self._whole.plan is None:
            raise UsageError("nothing is planned yet: the budget is divided at the beginning of the fourth step")
        return self._whole.plan

    @property
    def report(self) -> str:
        """The plan as text, with the last step that was measured."""
        names = {id(module): name for name, module in self._whole.root.named_modules()}
        blocks = [names.get(id(block.module), f"block {block.number}") for block in self._whole.blocks]
        return whole_report(type(self._whole.root).__name__, blocks, self.plan, self.history)

    @property
    def history(self) -> tuple[MeasuredWhole, ...]:
        """The steps that were measured last, oldest first: those before the plan have 0 for what is predicted.

        Not measured are steps in which something is captured or planned, and those in which blocks run in other ways
        than forward, and then backward in the reverse order.
        """
        return tuple(self._whole.history)

    def restore(self) -> nn.Module:
        """Make the model and its blocks what they were; returns it."""
        model = self._whole.root
        model._compiled_call_impl = None
        del model.graphopt
        for block in self._whole.blocks:
            if isinstance(handle := getattr(block.module, "graphopt", None), Optimized):
                handle.restore()
        return model


def _checked_blocks(model: nn.Module, blocks: Iterable[nn.Module]) -> list[nn.Module]:
    names = {id(module): name for name, module in model.named_modules()}
    modules = list(blocks)
    if not modules:
        raise UsageError("optimize_fsdp(): blocks names no module; give those that fully_shard() is called with")
    for number, module in enumerate(modules):
        if id(module) not in names or module is model:
            raise UsageError(f"optimize_fsdp(): blocks[{number}] is no module below the {type(model).__name__}")
        check_model(module)
    inside = {id(inner): module for module in modules for inner in module.modules() if inner is not module}
    for module in modules:
        if id(module) in inside:
            raise UsageError(
                f"optimize_fsdp(): {names[id(module)]!r} is inside of {names[id(inside[id(module)])]!r}: name one of "
                "them, as a block is planned whole"
            )
    if len({id(module) for module in modules}) < len(modules):
        raise UsageError("optimize_fsdp(): blocks names a module twice")
    return modules


def _nothing() -> None:
    return None
