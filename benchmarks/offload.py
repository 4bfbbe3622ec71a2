"""Values moved to a file, over links of several speeds: time, bytes and bits at budgets, with and without moving.

python -m benchmarks.offload [--only NAME ...] [--rates 25 100 400 0] [--json out.json]

A link of so many megabytes a second is a writer that is held to it (0: as fast as the file is). At each budget three
ways take turns in one process: eager, the plan that only keeps and makes again, and the plan that may also move. Times
are real ones on one thread, as transfers run beside it; a way counts as its median, and "off" is how far its time
over eager's is from what was planned. Peaks are the allocator's own over one step, measured from outside.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import graphopt
from benchmarks.common import LossModule, about, build_case, write_json
from graphopt.device.measure import peak_bytes
from graphopt.device.storages import tensors_in
from graphopt.kernels.offload import ops
from graphopt.kernels.offload.file_depot import FileDepot
from tests.support.zoo import Case

MODELS = ("gpt2", "vit", "unet", "blocks")
RATES = (25, 100, 400, 0)
#: Budgets between the least without moving and eager's peak, and the least with it.
SHARES = (None, 0.0, 0.25, 0.5)
ROUNDS = 9


@dataclass(frozen=True)
class Cell:
    """One model at one budget over one link; times over eager's, of plans and as measured."""

    model: str
    megabytes_per_second: int
    budget_bytes: int
    peak_bytes: int
    planned: float
    measured: float
    without_planned: float | None
    without_measured: float | None
    fetched: int
    moved_bytes: int
    recomputed: int
    plan_seconds: float
    without_plan_seconds: float
    is_eagers_bits: bool


class Blocks(nn.Module):
    """Products of equal size, and what is cheap between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(
            *[nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)) for _ in range(6)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x).square().mean()  # type: ignore[no-any-return]


def built(name: str) -> tuple[nn.Module, tuple[object, ...], dict[str, object]]:
    """A model that returns its loss, and its inputs."""
    if name == "blocks":
        torch.manual_seed(1)
        return Blocks(), (torch.randn(1024, 256),), {}
    case: Case = build_case(name)
    return LossModule(case), case.args, dict(case.kwargs)


class Subject:
    """A model to be planned again and again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model, self.args, self.kwargs = built(name)
        self.call = {"example_inputs": self.args, "example_kwargs": self.kwargs}

    def planned(self, budget: int, **options: object) -> tuple[nn.Module, float]:
        """The model inside a budget, and the seconds of `optimize`: capture, profile, plan."""
        model = copy.deepcopy(self.model)
        start = time.perf_counter()
        graphopt.optimize(model, budget, **self.call, **options)
        return model, time.perf_counter() - start

    def least(self, **options: object) -> int:
        """The least budget."""
        try:
            self.planned(1, **options)
        except graphopt.BudgetError as error:
            return error.minimum_bytes
        return 1

    def step(self, model: nn.Module) -> Callable[[], None]:
        """One forward and backward, from the same random state."""

        def run() -> None:
            model.zero_grad()
            torch.manual_seed(0)
            model(*self.args, **self.kwargs).backward()

        return run


def seconds_of(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def in_turns(steps: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The median seconds of each."""
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            times[name].append(seconds_of(step))
    return {name: statistics.median(each) for name, each in times.items()}


def cell_of(subject: Subject, rate: int, budget: int, folder: Path) -> Cell:
    """Plan, run and measure at one budget."""
    ops.use_depot(f"file {folder.resolve()}", FileDepot(folder, rate * 1e6))
    moving, plan_seconds = subject.planned(budget, offload=folder)
    models, without_plan_seconds = {"eager": copy.deepcopy(subject.model), "moving": moving}, 0.0
    with suppress(graphopt.BudgetError):
        models["without"], without_plan_seconds = subject.planned(budget)
    steps = {name: subject.step(model) for name, model in models.items()}
    times = in_turns(steps)
    pairs = zip(models["eager"].parameters(), moving.parameters(), strict=True)
    same = all(a.grad is None or torch.equal(a.grad, b.grad) for a, b in pairs)
    moving.zero_grad()
    held = [*moving.parameters(), *moving.buffers(), *tensors_in((subject.args, subject.kwargs))]
    peak = peak_bytes(steps["moving"], held, "cpu")
    plan = moving.graphopt.plan  # type: ignore[union-attr]
    without = models["without"].graphopt.plan if "without" in models else None  # type: ignore[union-attr]
    return Cell(
        subject.name, rate, budget, peak, 1 + plan.overhead, times["moving"] / times["eager"],
        1 + without.overhead if without else None, times["without"] / times["eager"] if without else None,
        len(plan.fetched), plan.moved_bytes, len(plan.recomputed), plan_seconds, without_plan_seconds, same,
    )  # fmt: skip


def row_of(cell: Cell) -> list[str]:
    def shown(each: float | None) -> str:
        return f"{each:.3f}" if each is not None else "-"

    rate = f"{cell.megabytes_per_second} MB/s" if cell.megabytes_per_second else "the file's"
    fits = "" if cell.peak_bytes <= cell.budget_bytes else " OVER"
    return [
        cell.model, rate, f"{cell.budget_bytes / 2**20:.1f}", f"{cell.peak_bytes / 2**20:.1f}{fits}",
        shown(cell.planned), shown(cell.measured), f"{cell.measured / cell.planned - 1:+.1%}",
        shown(cell.without_planned), shown(cell.without_measured), str(cell.fetched),
        f"{cell.moved_bytes / 2**20:.1f}", str(cell.recomputed),
        f"{cell.plan_seconds:.1f}/{cell.without_plan_seconds:.1f}", "yes" if cell.is_eagers_bits else "NO",
    ]  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=MODELS, default=MODELS)
    parser.add_argument("--rates", nargs="*", type=int, default=RATES, help="megabytes a second; 0: as fast as it is")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    heads = "model", "link", "budget MiB", "peak MiB", "planned", "measured", "off", "without: planned", "measured"
    table = Table(*heads, "fetched", "moved MiB", "recomputed", "plan s", "bits")
    cells = []
    for name in options.only:
        subject = Subject(name)
        least, roomy = subject.least(), subject.planned(2**50)[0]
        most = roomy.graphopt.plan.eager_peak_bytes  # type: ignore[union-attr]
        for rate in options.rates:
            ops.use_depot(f"file {options.folder.resolve()}", FileDepot(options.folder, rate * 1e6))
            smallest = min(least, subject.least(offload=options.folder))
            for share in SHARES:
                budget = smallest if share is None else int(least + share * (most - least))
                cells.append(cell_of(subject, rate, budget, options.folder))
                table.add_row(*row_of(cells[-1]))
                print(*row_of(cells[-1]), sep=" | ", flush=True)
                write_json(options.json, {**about("cpu"), "cells": [asdict(cell) for cell in cells]})
    Console(width=200).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
