"""A whole training step beside the loop that is written by hand: time, measured peak, what was predicted.

python -m benchmarks.step.whole_step [--rounds 5] [--json out.json]

GPT-2 of some 52 M parameters in 148 tensors, AdamW (fused on both sides), gradients clipped by norm; with and
without accumulation over four micro-batches, in float32 and under bfloat16 autocast with a dynamic loss scale. The
eager loop is `GradScaler`, `clip_grad_norm_`, `zero_grad(set_to_none=True)`. The two sides run in alternation,
on one thread; a ratio is graphopt's CPU seconds over eager's, round by round: the median, with quartiles. Peaks
are the allocator's. Nothing is recomputed, except in the rows that name a budget.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import graphopt
from benchmarks.common import write_json
from graphopt.device import measure

ROWS, LENGTH, VOCABULARY = 4, 32, 8192


@dataclass(frozen=True)
class Setting:
    """One way to train; `budget` lies that far from the least that the step needs to what it takes without one."""

    name: str
    accumulate: int = 1
    autocast: torch.dtype | None = None
    budget: float | None = None


SETTINGS = (
    Setting("fp32"),
    Setting("fp32, accumulate 4", accumulate=4),
    Setting("bf16 autocast, loss scale", autocast=torch.bfloat16),
    Setting("fp32, half way to the least", budget=0.5),
)


@dataclass(frozen=True)
class Row:
    """Both sides of one setting; bytes are everything that is allocated while a step runs."""

    setting: str
    seconds: float
    ratio: float
    lower_quartile: float
    upper_quartile: float
    peak_bytes: int
    predicted_bytes: int
    eager_peak_bytes: int


class Loss(nn.Module):
    """GPT-2 that returns its loss alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 576, "n_layer": 12, "n_head": 8}
        config = GPT2Config(**sizes, use_cache=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        config._attn_implementation = "eager"
        self.model = GPT2LMHeadModel(config)
        self.model.loss_type = "ForCausalLM"  # unset, transformers warns inside the forward, which breaks the graph

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def eager_step(setting: Setting, model: nn.Module, optimizer: Any, ids: Tensor) -> Callable[[], None]:
    """The loop as PyTorch's documentation has it."""
    scaler = torch.amp.GradScaler("cpu", enabled=setting.autocast is not None)  # type: ignore[attr-defined]
    parts = ids.split(ROWS // setting.accumulate)

    def run() -> None:
        for part in parts:
            casting = torch.autocast("cpu", setting.autocast) if setting.autocast else contextlib.nullcontext()
            with casting:
                loss = model(part) / len(parts)
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return run


def graphopt_step(setting: Setting, model: nn.Module, optimizer: Any, ids: Tensor) -> graphopt.TrainStep:
    options: dict[str, Any] = {"accumulate": setting.accumulate, "autocast": setting.autocast, "example_inputs": ids}
    options["clip"] = graphopt.ClipNorm(1.0)
    options["loss_scale"] = graphopt.DynamicLossScale() if setting.autocast else None
    budget = None
    if setting.budget is not None:
        free = graphopt.train_step(model, None, optimizer, **options)
        least, most = free.plan.minimum_bytes, free.plan.peak_bytes
        budget = int(least + setting.budget * (most - least))
    return graphopt.train_step(model, None, optimizer, budget, **options)


def measured_peak(run: Callable[[], object], model: nn.Module, optimizer: Any, others: list[Tensor]) -> int:
    state = [value for tensors in optimizer.state.values() for value in tensors.values()]
    return measure.peak_bytes(run, [*model.parameters(), *model.buffers(), *state, *others], "cpu")


def measure_setting(setting: Setting, rounds: int) -> Row:
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    ours, eager = Loss(), Loss()
    mine, theirs = optimizer_of(ours), optimizer_of(eager)
    step, by_hand = graphopt_step(setting, ours, mine, ids), eager_step(setting, eager, theirs, ids)

    def run() -> None:
        step(ids)

    run(), by_hand()
    peak = measured_peak(run, ours, mine, [ids, *step.accumulators])
    eager_peak = measured_peak(by_hand, eager, theirs, [ids])
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.process_time()
            (run, by_hand)[which]()
            seconds[which].append(time.process_time() - start)
    lower, ratio, upper = statistics.quantiles([a / b for a, b in zip(*seconds, strict=True)], n=4, method="inclusive")
    middle = statistics.median(seconds[0])
    return Row(setting.name, middle, ratio, lower, upper, peak, step.plan.peak_bytes, eager_peak)


def show(rows: list[Row]) -> Table:
    columns = ("setting", "seconds", "× eager's time", "quartiles", "peak MiB", "predicted", "eager's")
    table = Table(*columns, title="a whole training step")
    for row in rows:
        spread = f"{row.lower_quartile:.2f}–{row.upper_quartile:.2f}"
        peaks = (f"{size / 2**20:.1f}" for size in (row.peak_bytes, row.predicted_bytes, row.eager_peak_bytes))
        table.add_row(row.setting, f"{row.seconds:.2f}", f"{row.ratio:.2f}", spread, *peaks)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for setting in SETTINGS:
        rows.append(measure_setting(setting, args.rounds))
        write_json(args.json, [asdict(row) for row in rows])
    Console(width=None if sys.stdout.isatty() else 150).print(show(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
