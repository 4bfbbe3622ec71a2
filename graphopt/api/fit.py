"""Which batch fits: the ways to cut a given one, and the largest that needs no cutting. Nothing is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree

from graphopt.api.optimize import device_of
from graphopt.api.train_step import train_step
from graphopt.base.errors import CaptureError, UsageError
from graphopt.base.units import Budget
from graphopt.capture.mends.operators_on_meta import operators_on_meta
from graphopt.report.fit import Fit, Way
from graphopt.run.model.loss_module import as_call
from graphopt.step.micro_batches.division import Division, Trial, walk
from graphopt.step.micro_batches.window import rows_of

#: Says on the way what is being done.
Tell = Callable[[str], None]

#: Optimizers by name, for their bytes alone.
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters),
    "adam": lambda parameters: torch.optim.Adam(parameters),
    "sgd": lambda parameters: torch.optim.SGD(parameters, momentum=0.9),
    "none": lambda parameters: torch.optim.SGD(parameters),
}
#: Beyond so many rows no larger batch is looked for.
MOST_ROWS = 1 << 24


def fit_model(
    model: nn.Module,
    example_inputs: Any,
    loss_fn: Callable[..., Any] | None = None,
    *,
    mem_budget: Budget,
    optimizer: torch.optim.Optimizer | str = "adamw",
    tell: Tell = lambda _: None,
    **options: Any,
) -> Fit:
    """Find how batches fit the budget: by graphs captured at several sizes, each planned, none run.

    `optimizer` is one, or its name in OPTIMIZERS; `options` are those of `train_step()`. The largest batch
    is looked for with stand-ins that have no memory, and at bytes without the ops' scratch first; at the
    size found, ops that were not measured before are run alone. A model on the meta device is priced by the roofline.
    Raises CaptureError and UsageError.
    """
    is_on_meta = device_of(model).type == "meta"
    options |= {"cost_model": "roofline"} if is_on_meta else {}
    with operators_on_meta() if is_on_meta else nullcontext():
        return _fitted(model, example_inputs, loss_fn, mem_budget, optimizer, tell, options)


def _fitted(
    model: nn.Module,
    example_inputs: Any,
    loss_fn: Callable[..., Any] | None,
    mem_budget: Budget,
    optimizer: torch.optim.Optimizer | str,
    tell: Tell,
    options: Mapping[str, Any],
) -> Fit:
    args, kwargs = as_call(example_inputs, None)
    held = _optimizer(optimizer, model) if isinstance(optimizer, str) else optimizer

    def division(changed: Mapping[str, Any]) -> Division:
        return train_step(model, loss_fn, held, mem_budget, accumulate="auto", **{**options, **changed}).division

    exact = division({})
    rough = division({"cost_model": "roofline"}) if exact.memory.choice.cost_model != "roofline" else None
    given = _Given(args, kwargs, rows_of(args, kwargs), exact.memory.budget_bytes, tell)
    tried = walk(given.rows, given.budget_bytes, lambda size: given.piece(exact, size))
    ways = [way for way in tried if not isinstance(way.error, CaptureError)]
    fitting = [way for way in ways if way.micro]
    return Fit(
        model=type(model).__name__,
        device=str(exact.memory.device),
        optimizer=type(held).__name__,
        rows=given.rows,
        budget_bytes=given.budget_bytes,
        ways=tuple(sorted(map(_way, ways), key=lambda way: way.micro_batches)),
        chosen=_way(min(fitting, key=lambda way: way.seconds)) if fitting else None,
        largest_batch=given.largest_batch(exact, rough, ways[0]),
        largest_micro_batch=given.rows if ways[0].micro else given.largest_piece(exact, ways),
    )


@dataclass(frozen=True)
class _Given:
    """The batch and the budget."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    rows: int
    budget_bytes: int
    tell: Tell

    def piece(self, division: Division, size: int) -> Trial:
        """Micro-batches of `size` rows of the batch."""
        self.tell(f"planning micro-batches of {size} of {self.rows} rows")
        return division.trial(self.args, self.kwargs, size)

    def whole(self, division: Division, rows: int) -> Trial:
        """Another batch of so many rows, uncut."""
        self.tell(f"looking for the largest batch: {rows} rows")
        return division.trial(*stand_in(self.args, self.kwargs, rows), rows)

    def largest_batch(self, exact: Division, rough: Division | None, uncut: Trial) -> int:
        """With `rough` costs, which know no scratch and so are never above the exact ones, before the exact ones."""
        most = MOST_ROWS if uncut.micro else self.rows - 1
        first = min(self.rows, most)
        if rough is not None:
            first = most = largest_fitting(
                lambda rows: self.whole(rough, rows).minimum_bytes, self.budget_bytes, first, most
            )
        known = {self.rows: uncut.minimum_bytes}
        return largest_fitting(
            lambda rows: self.whole(exact, rows).minimum_bytes, self.budget_bytes, first, most, known
        )

    def largest_piece(self, exact: Division, ways: list[Trial]) -> int:
        """The largest micro-batch where the batch must be cut."""
        known = {way.micro_rows: way.minimum_bytes for way in ways}
        return largest_fitting(
            lambda size: self.piece(exact, size).minimum_bytes, self.budget_bytes, self.rows // 2, self.rows - 1, known
        )


def largest_fitting(
    need: Callable[[int], int],
    budget_bytes: int,
    first: int,
    most: int,
    known: Mapping[int, int] = MappingProxyType({}),
) -> int:
    """The largest size from 1 to `most` for which need(size) <= budget_bytes, need rising; 0 where there is none.

    `first` is tried first, then what a line through the nearest two says; `known` are needs by size.
    """
    needs = {**known}
    low = max((size for size in needs if needs[size] <= budget_bytes), default=0)
    high = min([size for size in needs if needs[size] > budget_bytes] + [most + 1])
    size = first
    while high - low > 1:
        size = min(max(size, low + 1), high - 1)
        needs[size] = need(size)
        low, high = (size, high) if needs[size] <= budget_bytes else (low, size)
        size = _guess(needs, budget_bytes, low, high)
    return low


def stand_in(args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch with so many rows, of tensors that have no memory."""
    now = rows_of(args, kwargs)

    def resized(leaf: Any) -> Any:
        if not (isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == now):
            return leaf
        shape = (rows, *leaf.shape[1:])
        one_after_another = leaf.stride(0) == math.prod(leaf.shape[1:])
        stride = leaf.stride() if one_after_another else torch.empty(shape, device="meta").stride()
        return torch.empty_strided(shape, stride, dtype=leaf.dtype, device=leaf.device)

    with FakeTensorMode():
        found: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(resized, (args, dict(kwargs)))
    return found


def _guess(known: Mapping[int, int], budget_bytes: int, low: int, high: int) -> int:
    """Where the line through two known sizes next to the answer crosses the budget; a bold step where there is one."""
    sizes = sorted(known)
    if low in known and high in known:
        one, other = low, high
        if len(known) % 5 == 0:  # on a curve, halves get there in any case
            return (low + high) // 2
    elif len(sizes) > 1:
        one, other = sizes[-2:] if low in known else sizes[:2]
    else:
        return 2 * sizes[0] if low in known else sizes[0] // 2
    slope = (known[other] - known[one]) / (other - one)
    if slope <= 0:
        return 2 * other
    guess = int(one + (budget_bytes - known[one]) / slope)
    return guess if high in known else min(guess, 64 * low)


def _way(trial: Trial) -> Way:
    if trial.micro is None:
        return Way(trial.accumulate, trial.micro_rows, trial.minimum_bytes, None, None, None)
    overhead = trial.seconds / trial.eager_seconds - 1 if trial.eager_seconds else 0.0
    seconds_a_row = trial.seconds / trial.rows
    return Way(trial.accumulate, trial.micro_rows, trial.minimum_bytes, trial.micro.peak_bytes, overhead, seconds_a_row)


def _optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name not in OPTIMIZERS:
        raise UsageError(f"there is no optimizer {name!r} here; there are: {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]([parameter for parameter in model.parameters() if parameter.requires_grad])
