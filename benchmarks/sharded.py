"""Models shared out over ranks: `train_step(shard=True)` against `fully_shard`, with and without checkpoints per block.

python -m benchmarks.sharded [model ...] [--world 2] [--rate 1gbit] [--rounds 7] [--json out.json]
torchrun --nproc-per-node 4 -m benchmarks.sharded [model ...] --device cuda [--json out.json]

All ways train the same model with AdamW on the same batches, one thread a rank. Peaks are the allocator's over one
whole step of the rank that takes the most, everything counted; seconds are of the slowest rank, the median over rounds
in which the ways alternate, in one set of processes. With `--rate` ranks are in network namespaces, behind links of
that rate (which needs root); with `--device cuda` each is a process of torchrun, with a GPU of its own and NCCL.
graphopt gets as budgets what the other two take, the least that it can do, and points between.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import graphopt
from benchmarks.common import about, clock_of, write_json
from benchmarks.compression.network import run_ranks_over_network
from benchmarks.sharded_models import MODELS, Sharded
from graphopt.base.units import format_bytes
from graphopt.device.measure import peak_bytes
from graphopt.device.storages import unique_storage_bytes
from tests.support.ranks import run_ranks

#: Budgets between the least and what `fully_shard` takes, as shares of the way.
BETWEEN = (0.0, 0.25, 0.5, 0.75, 1.0)
WARM_UP_STEPS = 2
Step = Callable[[tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class Cell:
    """One way to train a model: the most bytes of a rank, seconds of a step, and how far parameters are apart."""

    model: str
    world: int
    way: str
    budget_bytes: int | None
    planned_bytes: int | None
    peak_bytes: int
    seconds: float
    difference: float


@dataclass(frozen=True)
class Way:
    """A step on a batch, what it holds, and its whole parameters."""

    name: str
    step: Step
    held: Callable[[], list[Tensor]]
    parameters: Callable[[], list[Tensor]]
    budget_bytes: int | None = None
    planned_bytes: int | None = None


def by_fsdp(case: Sharded, *, checkpoints: bool) -> Way:
    """`fully_shard` on each block, and on the model."""
    model = case.model()
    mesh = init_device_mesh(case.device, (dist.get_world_size(),))
    for name, block in list(case.blocks(model)):
        wrapped = checkpoint_wrapper(block) if checkpoints else block
        if checkpoints:
            parent, _, leaf = name.rpartition(".")
            model.get_submodule(parent)._modules[leaf] = wrapped
        fully_shard(wrapped, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(batch: tuple[Tensor, ...]) -> Tensor:
        optimizer.zero_grad()
        loss = case.loss(model, batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def parameters() -> list[Tensor]:
        return [p.full_tensor() for p in model.parameters()]  # type: ignore[attr-defined]

    locals_of = lambda: [p.to_local() for p in model.parameters()]  # type: ignore[attr-defined]  # noqa: E731
    name = "fully_shard + checkpoint" if checkpoints else "fully_shard"
    return Way(name, step, lambda: [*locals_of(), *_state(optimizer), *model.buffers()], parameters)


def by_graphopt(case: Sharded, budget_bytes: int | None, name: str = "graphopt", **options: Any) -> Way:
    """The whole step, in a budget a rank."""
    model = case.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    whole = _Loss(model, case)
    step = graphopt.train_step(whole, None, optimizer, budget_bytes, **{"shard": True, **options})

    def run(batch: tuple[Tensor, ...]) -> Tensor:
        return step(*batch).loss

    def parameters() -> list[Tensor]:
        with step.whole_model():
            return [p.detach().clone() for p in model.parameters()]

    run(case.batch(0, dist.get_rank()))
    exchange = step._exchange
    assert exchange is not None
    kept = lambda: [*_state(optimizer), *exchange.tensors, *step.accumulators]  # noqa: E731
    held = lambda: [*(p.data for p in model.parameters()), *kept(), *model.buffers()]  # noqa: E731
    return Way(name, run, held, parameters, budget_bytes, step.plan.peak_bytes)


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, case: Sharded) -> None:
        super().__init__()
        self.model, self.case = model, case

    def forward(self, *batch: Tensor) -> Tensor:
        return self.case.loss(self.model, batch)


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    found = [value for held in optimizer.state.values() for value in held.values() if isinstance(value, Tensor)]
    return [getattr(value, "_local_tensor", value) for value in found]


def measured_peak(way: Way, case: Sharded) -> int:
    """The most of any rank in a step; the least of three, as a backend's thread may let go late."""
    peaks = []
    for i in range(3):
        batch = case.batch(i, dist.get_rank())
        held = [*way.held(), *batch]
        # on a GPU all that is there counts, the other ways' models too
        others = 0
        if case.device == "cuda":
            others = torch.cuda.memory_allocated() - unique_storage_bytes(held, torch.device(case.device))
        peaks.append(peak_bytes(partial(way.step, batch), held, case.device) - others)
    most = torch.tensor(min(peaks), device=case.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def run_model(name: str, rounds: int, device: str = "cpu") -> list[Cell]:
    """All ways on one model, on this rank; the cells are those of all ranks together."""
    warnings.filterwarnings("ignore")
    case = MODELS[name].on(device)
    ways = [by_fsdp(case, checkpoints=False), by_fsdp(case, checkpoints=True)]
    for way in ways:
        way.step(case.batch(0, dist.get_rank()))
    peaks = [measured_peak(way, case) for way in ways]
    least = _least_bytes(case)
    most = max(peaks)
    budgets = {int(least + share * (most - least)) for share in BETWEEN} | {p for p in peaks if p >= least}
    ways += [by_graphopt(case, budget) for budget in sorted(budgets)]
    peaks += [measured_peak(way, case) for way in ways[2:]]
    reference = ways[0].parameters()
    differences = [
        max(float((a - b).abs().max()) for a, b in zip(way.parameters(), reference, strict=True)) for way in ways
    ]
    seconds = seconds_of(ways, case, rounds)
    world = dist.get_world_size()
    rows = zip(ways, peaks, seconds, differences, strict=True)
    return [Cell(name, world, w.name, w.budget_bytes, w.planned_bytes, p, s, d) for w, p, s, d in rows]


def _least_bytes(case: Sharded) -> int:
    """What graphopt says that it needs, taken at its word until it is done."""
    budget = 1
    while True:
        try:
            by_graphopt(case, budget)
        except graphopt.BudgetError as error:
            assert error.minimum_bytes > budget
            budget = error.minimum_bytes
        else:
            return budget


def seconds_of(ways: list[Way], case: Sharded, rounds: int) -> list[float]:
    """Of a step of each, the median over rounds in which they alternate, on the slowest rank."""
    found: list[list[float]] = [[] for _ in ways]
    for number in range(WARM_UP_STEPS + rounds):
        for way, seconds in zip(ways, found, strict=True):
            batch = case.batch(number, dist.get_rank())
            dist.barrier()
            clock = clock_of(case.device, threads=2)
            start = clock()
            way.step(batch)
            taken = torch.tensor(clock() - start, dtype=torch.float64, device=case.device)
            dist.all_reduce(taken, dist.ReduceOp.MAX)
            if number >= WARM_UP_STEPS:
                seconds.append(float(taken))
    return [statistics.median(each) for each in found]


def table_of(cells: list[Cell]) -> Table:
    """For people."""
    table = Table("model", "ranks", "way", "budget", "planned", "measured", "a step", "of fully_shard", "difference")
    for cell in cells:
        base = next(c.seconds for c in cells if c.model == cell.model and c.world == cell.world)
        sizes = [format_bytes(n) if n is not None else "" for n in (cell.budget_bytes, cell.planned_bytes)]
        times = f"{1000 * cell.seconds:.1f} ms", f"{cell.seconds / base:.3f}"
        table.add_row(
            cell.model,
            str(cell.world),
            cell.way,
            *sizes,
            format_bytes(cell.peak_bytes),
            *times,
            f"{cell.difference:.1e}",
        )
    return table


def main(arguments: list[str]) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), choices=[*MODELS, []])
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--rate", default=None, help="1gbit or 100mbit: of each rank's link")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    cells: list[Cell] = []
    if options.device == "cuda":
        dist.init_process_group("nccl")
        torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
    for name in options.models:
        work: Any = (options.world, options.rate) if options.rate else (options.world,)
        run = run_ranks_over_network if options.rate else run_ranks
        if options.device == "cuda":
            cells += run_model(name, options.rounds, "cuda")
            if dist.get_rank() != 0:
                continue
        else:
            cells += run(*work, run_model, name, options.rounds, timeout=1200)[0]
        Console().print(table_of([cell for cell in cells if cell.model == name]))
        rows = [asdict(cell) for cell in cells]
        write_json(options.json, {**about(options.device), "rate": options.rate, "cells": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
