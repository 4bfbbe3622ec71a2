"""Every model of the zoo at every budget: does it fit, as predicted, with the very gradients?

python -m benchmarks.planning.matrix [model ...] [--shares 0.9,0.5,minimum] [--anchors] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import graphopt
from graphopt.base.units import format_bytes
from graphopt.device.measure import peak_bytes
from graphopt.device.storages import tensors_in
from tests.support.zoo import ANCHORS, ZOO, Case, differences, step

SHARES: tuple[float | None, ...] = (0.9, 0.7, 0.5, 0.4, 0.3, None)
"""Shares of eager's measured peak; None is the least budget that has a plan."""

_UNLIMITED = 1 << 50


@dataclass(frozen=True)
class Reference:
    """What the cells of one model are compared with: eager, and its captured graph with nothing recomputed."""

    model: str
    build: Callable[[], Case]
    eager: dict[str, Tensor]
    captured: dict[str, Tensor]
    eager_peak_bytes: int
    minimum_bytes: int


@dataclass(frozen=True)
class Cell:
    """One model at one budget. `error` says why it did not run ("" where it did)."""

    model: str
    share: float | None
    budget_bytes: int
    minimum_bytes: int
    eager_peak_bytes: int
    error: str = ""
    predicted_bytes: int = 0
    measured_bytes: int = 0
    overhead: float = 0.0
    unlike_captured: tuple[str, ...] = ()
    unlike_eager: tuple[str, ...] = ()
    worst_difference: float = 0.0
    seconds: float = 0.0

    @property
    def feasible(self) -> bool:
        return self.budget_bytes >= self.minimum_bytes

    @property
    def fits(self) -> bool:
        return not self.error and self.measured_bytes <= self.budget_bytes

    @property
    def good(self) -> bool:
        """Inside the budget and bitwise as captured, or rightly refused."""
        return (self.fits and not self.unlike_captured) if self.feasible else self.error.startswith("BudgetError")


def make_reference(model: str) -> Reference:
    """Run the model in eager and as captured, and find the least budget."""
    build = (ZOO | ANCHORS)[model]
    case = build()
    eager = _kept(step(case))
    eager_peak = measured_peak(case, case.model)
    torch._dynamo.reset()
    case = build()
    # one reference for all budgets: what differs from it was changed by planning, not by capturing
    optimized = _optimize(case, _UNLIMITED, planner="none")
    captured = _kept(step(case, optimized))
    plan: graphopt.Plan = optimized.graphopt.plan  # type: ignore[union-attr, assignment]
    return Reference(model, build, eager, captured, eager_peak, plan.minimum_bytes)


def run_cell(reference: Reference, share: float | None) -> Cell:
    """Plan the model at a share of eager's peak, run it, compare it, and measure a second step from outside."""
    budget = reference.minimum_bytes if share is None else int(share * reference.eager_peak_bytes)
    known = (reference.model, share, budget, reference.minimum_bytes, reference.eager_peak_bytes)
    torch._dynamo.reset()
    case = reference.build()
    started = time.perf_counter()
    try:
        optimized = _optimize(case, budget)
    except graphopt.GraphoptError as error:
        return Cell(*known, error=f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - started
    seen = step(case, optimized)
    unlike_captured = differences(reference.captured, seen)
    unlike_eager = differences(reference.eager, seen)
    del seen
    plan: graphopt.Plan = optimized.graphopt.plan  # type: ignore[union-attr, assignment]
    return Cell(
        *known,
        predicted_bytes=plan.peak_bytes,
        measured_bytes=measured_peak(case, optimized),
        overhead=plan.overhead,
        unlike_captured=tuple(sorted(unlike_captured)),
        unlike_eager=tuple(sorted(unlike_eager)),
        worst_difference=max(unlike_eager.values(), default=0.0),
        seconds=seconds,
    )


def run_matrix(models: list[str], shares: tuple[float | None, ...] = SHARES) -> Iterator[Cell]:
    for model in models:
        try:
            reference = make_reference(model)
        except graphopt.GraphoptError as error:
            yield Cell(model, 1.0, _UNLIMITED, 0, 1, error=f"{type(error).__name__}: {error}")
            continue
        yield from (run_cell(reference, share) for share in shares)


def measured_peak(case: Case, model: nn.Module) -> int:
    """The highest number of bytes allocated in one step: parameters, buffers, inputs and all that the step makes."""
    case.model.zero_grad(set_to_none=True)
    resident = [*case.model.parameters(), *case.model.buffers(), *tensors_in([case.args, case.kwargs])]

    def train() -> None:
        # a training loop holds the model's output until the backward has returned
        output = model(*case.args, **case.kwargs)
        case.loss(output).backward()

    peak = peak_bytes(train, resident, resident[0].device)
    case.model.zero_grad(set_to_none=True)
    return peak


def _optimize(case: Case, budget: int, **options: Any) -> nn.Module:
    inputs = {"example_inputs": case.args, "example_kwargs": case.kwargs, "reserve": case.loss_bytes}
    return graphopt.optimize(case.model, budget, **inputs, **options)


def _kept(seen: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in seen.items()}


def _equal(names: tuple[str, ...]) -> str:
    return "yes" if not names else f"no: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def show(cells: list[Cell]) -> Table:
    columns = ("model", "budget", "predicted", "measured", "predicted/measured", "fits", "overhead", "plan s")
    table = Table(*columns, "= captured", "= eager", title="zoo × budgets")
    for cell in cells:
        share = "minimum" if cell.share is None else f"{cell.share:.0%}"
        name = [cell.model, f"{share} {format_bytes(cell.budget_bytes)}"]
        if cell.error:
            least = f"minimum {cell.minimum_bytes / cell.eager_peak_bytes:.0%}"
            table.add_row(
                *name, "refused" if cell.good else cell.error[:60], least, style="dim" if cell.good else "red"
            )
            continue
        figures = [format_bytes(cell.predicted_bytes), format_bytes(cell.measured_bytes)]
        figures += [f"{cell.predicted_bytes / cell.measured_bytes:.4f}", "yes" if cell.fits else "NO"]
        figures += [f"{cell.overhead:.1%}", f"{cell.seconds:.1f}"]
        table.add_row(
            *name, *figures, _equal(cell.unlike_captured), _equal(cell.unlike_eager), style="" if cell.good else "red"
        )
    return table


def _share(text: str) -> float | None:
    return None if text == "minimum" else float(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names from tests/support/zoo (default: all small ones)")
    parser.add_argument("--anchors", action="store_true", help="the anchor models instead of the small ones")
    parser.add_argument("--shares", type=lambda text: tuple(map(_share, text.split(","))), default=SHARES)
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args()
    cells = []
    for cell in run_matrix(args.models or list(ANCHORS if args.anchors else ZOO), args.shares):
        cells.append(cell)
        verdict = "ok" if cell.good else f"BAD {cell.error}"
        print(f"{cell.model} {cell.share} {verdict}", file=sys.stderr, flush=True)
        if args.json:
            rows = [{**asdict(each), "fits": each.fits, "good": each.good} for each in cells]
            args.json.write_text(json.dumps(rows, indent=1))
    Console(width=None if sys.stdout.isatty() else 200).print(show(cells))
    return 0 if all(cell.good for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
