"""Whole training steps inside budgets: measured peak, budget and prediction for every model of the zoo.

python -m benchmarks.step.step_matrix [model ...] [--json out.json]

Every model with AdamW, its batch whole, in four micro-batches and cut as `accumulate="auto"` chooses; at the least
budget that its step reports, and 60 % of the way from there to what it takes without one; with and without
clipping by norm and a dynamic loss scale, so that each of the four combinations comes at one of the budgets. Peaks
are the allocator's over one step, everything on the device counted; a model that cannot be cut, or breaks into
several graphs, is said and left out. The file is written after each model, and names those that are whole in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

import graphopt
from benchmarks.common import ZOO, LossModule, about, build_case, write_json
from graphopt.base.errors import GraphoptError
from graphopt.device import measure
from graphopt.device.storages import tensors_in

Ways = int | Literal["auto"]
WAYS: tuple[Ways, ...] = (1, 4, "auto")
#: Distance from the least budget to what the step takes unbudgeted, clipping, loss scale.
CELLS = ((0.0, False, False), (0.0, True, True), (0.6, True, False), (0.6, False, True))


@dataclass(frozen=True)
class Cell:
    """One budget of one step; bytes are everything on the device, `error` is "" where it ran."""

    model: str
    accumulate: Ways
    budget_bytes: int
    clipped: bool
    scaled: bool
    micro_batch_size: int = 0
    predicted_bytes: int = 0
    measured_bytes: int = 0
    error: str = ""

    @property
    def fits(self) -> bool:
        return self.measured_bytes <= self.budget_bytes


def make_step(name: str, accumulate: Ways, budget: int | None, clipped: bool, scaled: bool) -> tuple[Any, Any, Any]:
    """(step, its model, the batch's tensors), from a fresh case."""
    torch._dynamo.reset()
    case = build_case(name)
    module = LossModule(case)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    step = graphopt.train_step(
        module,
        None,
        optimizer,
        budget,
        example_inputs=case.args or None,
        example_kwargs=case.kwargs,
        accumulate=accumulate,
        clip=graphopt.ClipNorm(1.0) if clipped else None,
        loss_scale=graphopt.DynamicLossScale(initial=1024.0) if scaled else None,
    )
    return step, module, (case.args, case.kwargs)


def measured_peak(step: Any, module: torch.nn.Module, batch: Any) -> int:
    """The peak of a step that is not the first, as the allocator has it."""
    args, kwargs = batch
    step(*args, **kwargs)
    state = [value for tensors in step.optimizer.state.values() for value in tensors.values()]
    resident = [*module.parameters(), *module.buffers(), *tensors_in(batch), *state, *step.accumulators]
    return measure.peak_bytes(lambda: step(*args, **kwargs), resident, "cpu")


def cells_of(name: str, accumulate: Ways) -> Iterator[Cell]:
    free = make_step(name, 1 if accumulate == "auto" else accumulate, None, False, False)[0].plan
    for share, clipped, scaled in CELLS:
        budget = int(free.minimum_bytes + share * (free.peak_bytes - free.minimum_bytes))
        cell = Cell(name, accumulate, budget, clipped, scaled)
        try:
            step, module, batch = make_step(name, accumulate, budget, clipped, scaled)
            measured = measured_peak(step, module, batch)
        except GraphoptError as error:
            yield Cell(**{**asdict(cell), "error": f"{type(error).__name__}: {error}"})
            continue
        found = {"micro_batch_size": step.micro_batch_size, "predicted_bytes": step.plan.peak_bytes}
        yield Cell(**{**asdict(cell), **found, "measured_bytes": measured})


def show(cells: list[Cell]) -> Table:
    table = Table("model", "accumulate", "ran", "inside", "refused", "predicted / measured", title="steps in budgets")
    for model, ways in dict.fromkeys((cell.model, cell.accumulate) for cell in cells):
        mine = [cell for cell in cells if (cell.model, cell.accumulate) == (model, ways)]
        ran = [cell for cell in mine if not cell.error]
        ratios = [cell.predicted_bytes / cell.measured_bytes for cell in ran]
        spread = f"{min(ratios):.3f}–{max(ratios):.3f}" if ratios else mine[0].error.splitlines()[0][:60]
        inside = sum(cell.fits for cell in ran)
        table.add_row(model, str(ways), str(len(ran)), str(inside), str(len(mine) - len(ran)), spread)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(ZOO))
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells: list[Cell] = []
    done: list[str] = []
    for name in args.models:
        for ways in WAYS:
            try:
                cells += cells_of(name, ways)
            except GraphoptError as error:
                cells.append(Cell(name, ways, 0, False, False, error=f"{type(error).__name__}: {error}"))
        done.append(name)
        write_json(args.json, {**about("cpu"), "models": done, "rows": [asdict(cell) for cell in cells]})
        print(name, file=sys.stderr)
    Console(width=None if sys.stdout.isatty() else 130).print(show(cells))
    return int(not all(cell.fits for cell in cells if not cell.error))


if __name__ == "__main__":
    sys.exit(main())
