"""Twenty steps of parameters shared out over ranks, against DDP, one process, and one process in float64.

python -m benchmarks.sharded_training [model ...] [--worlds 2 4] [--steps 20] [--json out.json]

All train the same model on the same global batches with AdamW, two micro-batches a step, clipped by the norm, under a
dynamic loss scale that grows, and falls where one rank's loss is infinite in the seventh step. One process takes each
rank's micro-batches for itself, so that batch norm sees what it sees there. How far parameters and losses are apart is
told in units of the last place of a float32 as large as the largest of each: of what orders sums in another way, each
from float64. Peaks are the allocator's, everything counted, of the rank that takes the most, over whole steps.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import graphopt
from benchmarks.common import about, write_json
from benchmarks.sharded_models import MODELS, Sharded
from graphopt.base.units import format_bytes
from graphopt.device.measure import peak_bytes
from tests.support.ranks import run_ranks

KINDS = ("gpt2", "llama", "convolutions", "experts")
MICROS, LIMIT, INITIAL_SCALE, INTERVAL, SPOILT_STEP = 2, 1.0, 2.0**10, 4, 6
#: Budgets between the least and what a plan without recomputation takes, as shares of the way.
SHARES = (0.1, 1.0)
Run = tuple[list[float], list[bool], list[Tensor]]


@dataclass(frozen=True)
class Trained:
    """One model in one budget: bytes of a rank, and units of the last place between parameters, and losses."""

    model: str
    world: int
    budget_bytes: int
    planned_bytes: int
    peak_bytes: int
    skipped: int
    #: Of parameters: this from DDP, and all from float64.
    from_ddp: float
    sharded: float
    ddp: float
    one_process: float
    #: Of losses, from float64.
    loss_sharded: float
    loss_ddp: float


class WithLoss(nn.Module):
    """A model that returns its loss, times the mean of a factor for each row."""

    def __init__(self, case: Sharded) -> None:
        super().__init__()
        self.model, self.case = case.model(), case

    def forward(self, factor: Tensor, *batch: Tensor) -> Tensor:
        """The loss of a micro-batch; the factor is 1, and exact."""
        return self.case.loss(self.model, batch) * factor.mean()


def batch_of(case: Sharded, i: int, rank: int) -> tuple[Tensor, ...]:
    """A rank's part of the i-th global batch, the factor in front; in one step rank 1's last one is infinite."""
    batch = case.batch(i, rank)
    factor = torch.ones(len(batch[0]))
    if i == SPOILT_STEP and rank == 1:
        factor[-1] = torch.inf
    return factor, *batch


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Its `eps` is far above what roundings make of gradients that are 0, such as those of keys' biases."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-6)


def eager(case: Sharded, steps: int, dtype: torch.dtype = torch.float32, *, ddp: bool = False) -> Run:
    """The plain loop: on this rank's part under DDP, else on all ranks' parts."""
    model = WithLoss(case).to(dtype)
    wrapped = DistributedDataParallel(model) if ddp else model
    optimizer, world = optimizer_of(model), dist.get_world_size()
    scaler = torch.amp.GradScaler("cpu", init_scale=INITIAL_SCALE, growth_interval=INTERVAL)
    losses, skipped = [], []
    ranks = [dist.get_rank()] if ddp else range(world)
    for i in range(steps):
        optimizer.zero_grad()
        pieces = [piece for rank in ranks for piece in _micros(batch_of(case, i, rank), dtype)]
        total = torch.zeros((), dtype=dtype)
        for number, piece in enumerate(pieces):
            waits = wrapped.no_sync() if ddp and number + 1 < len(pieces) else nullcontext()
            with waits:
                loss = wrapped(*piece) / len(pieces)
                scaler.scale(loss).backward()
            total += loss.detach()
        before = scaler.get_scale()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
        scaler.step(optimizer)
        scaler.update()
        if ddp:
            dist.all_reduce(total)
            total /= world
        losses.append(float(total))
        skipped.append(scaler.get_scale() < before)
    return losses, skipped, [p.detach() for p in model.parameters()]


def sharded(case: Sharded, steps: int, budget_bytes: int) -> tuple[Run, int, int]:
    """Steps in a budget a rank; with what was planned, and what was measured behind them."""
    step = build(case, budget_bytes)
    rank = dist.get_rank()
    results = [step(*batch_of(case, i, rank)) for i in range(steps)]
    losses, skipped = [float(each.loss) for each in results], [each.skipped for each in results]
    with step.whole_model() as model:
        parameters = [p.detach().clone() for p in model.parameters()]
    batch = batch_of(case, steps, rank)
    held = [*(p.data for p in step.model.parameters()), *step.model.buffers(), *step.accumulators, *batch]
    held += [t for state in step.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    # a backend's thread may let go late
    peak = torch.tensor(min(peak_bytes(partial(step, *batch), held, "cpu") for _ in range(3)))
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    return (losses, skipped, parameters), step.plan.peak_bytes, int(peak)


def build(case: Sharded, budget_bytes: int | None) -> graphopt.TrainStep:
    """The step under test."""
    model = WithLoss(case)
    options: dict[str, Any] = {"accumulate": MICROS, "clip": graphopt.ClipNorm(LIMIT), "shard": True}
    scale = graphopt.DynamicLossScale(INITIAL_SCALE, interval=INTERVAL)
    batch = batch_of(case, 0, dist.get_rank())
    return graphopt.train_step(
        model, None, optimizer_of(model), budget_bytes, loss_scale=scale, example_inputs=batch, **options
    )


def run_model(name: str, steps: int, shares: tuple[float, ...] = SHARES) -> list[Trained]:
    """All ways on this rank; what is told is the first rank's, which has the references."""
    warnings.filterwarnings("ignore")
    case, is_first = MODELS[name], dist.get_rank() == 0
    by_ddp = eager(case, steps, ddp=True)
    one, exact = (eager(case, steps, dtype) if is_first else by_ddp for dtype in (torch.float32, torch.float64))
    loose = build(case, None).plan
    found = []
    for share in shares:
        budget = int(loose.minimum_bytes + share * (loose.peak_bytes - loose.minimum_bytes))
        mine, planned, peak = sharded(case, steps, budget)
        assert mine[1] == by_ddp[1] == one[1], "steps are skipped alike"
        apart: Callable[[Run, Run], float] = lambda a, b: max(map(ulps, a[2], b[2]))  # noqa: E731
        cell = Trained(
            *(name, dist.get_world_size(), budget, planned, peak, sum(mine[1])),
            from_ddp=apart(mine, by_ddp),
            sharded=apart(mine, exact),
            ddp=apart(by_ddp, exact),
            one_process=apart(one, exact),
            loss_sharded=_losses_apart(mine, exact),
            loss_ddp=_losses_apart(by_ddp, exact),
        )
        found.append(cell)
    return found


def ulps(found: Tensor, expected: Tensor) -> float:
    """The largest difference in units of the last place of the largest element."""
    return float((found.double() - expected.double()).abs().max() / expected.abs().max() / 2.0**-23)


def _losses_apart(run: Run, exact: Run) -> float:
    there = [(a, b) for a, b, skip in zip(run[0], exact[0], run[1], strict=True) if not skip]
    return max(abs(a - b) / abs(b) / 2.0**-23 for a, b in there)


def _micros(batch: tuple[Tensor, ...], dtype: torch.dtype) -> Iterator[tuple[Tensor, ...]]:
    cast = [t.to(dtype) if t.is_floating_point() else t for t in batch]
    return zip(*(t.chunk(MICROS) for t in cast), strict=True)


def table_of(cells: list[Trained]) -> Table:
    """For people."""
    table = Table("model", "ranks", "budget", "planned", "measured", "skipped", title="units of the last place")
    for column in ("from DDP", "sharded", "DDP", "one process", "loss", "DDP's loss"):
        table.add_column(column)
    for c in cells:
        sizes = [format_bytes(size) for size in (c.budget_bytes, c.planned_bytes, c.peak_bytes)]
        numbers = c.from_ddp, c.sharded, c.ddp, c.one_process, c.loss_sharded, c.loss_ddp
        table.add_row(c.model, str(c.world), *sizes, str(c.skipped), *(f"{n:.1f}" for n in numbers))
    return table


def main(arguments: list[str]) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(KINDS), choices=[*MODELS, []])
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    cells: list[Trained] = []
    for world in options.worlds:
        for name in options.models:
            cells += run_ranks(world, run_model, name, options.steps, timeout=1800)[0]
            Console(width=160).print(table_of(cells[-len(SHARES) :]))
            write_json(options.json, {**about("cpu"), "steps": options.steps, "cells": [asdict(c) for c in cells]})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
