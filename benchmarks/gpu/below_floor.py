"""Below the floor on one device: a Llama-like model of many words, its floor with and without pieces, and offload.

python -m benchmarks.gpu.below_floor [--device cuda] [--small] [--rounds 5] [--json out.json]

Rows: the least budget whole and with `numerics="reordered"`; then, at a quarter of eager's peak or the least that is
above it, a step without and with `offload` ("host" on a GPU, "file" on a CPU): planned and measured peak, time over
eager's (medians, alternating), and whether gradients are eager's bits. `--small` is a size for a CPU.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import graphopt
from benchmarks.common import clock_of, write_results
from graphopt.device.measure import peak_bytes

LARGE = {"vocab_size": 128_000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8}
SMALL = {"vocab_size": 1_000, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2}


@dataclass
class Row:
    """One way to train it; bytes are a step's, `ratio` its time over eager's."""

    contender: str
    budget_bytes: int = 0
    planned_bytes: int = 0
    measured_bytes: int = 0
    ratio: float = 0.0
    moved_bytes: int = 0
    recomputed: int = 0
    is_eagers_bits: bool | None = None


class LossAlone(nn.Module):
    """The model's loss, without its logits."""

    def __init__(self, small: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        heads = 2 if small else 8
        sizes = SMALL if small else LARGE
        config = LlamaConfig(
            **sizes, num_attention_heads=heads, num_key_value_heads=heads, use_cache=False, attn_implementation="sdpa"
        )
        self.model = LlamaForCausalLM(config)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]


def least_of(model: nn.Module, ids: torch.Tensor, **options: object) -> int:
    try:
        graphopt.optimize(copy.deepcopy(model), "1B", example_inputs=ids, **options)  # type: ignore[arg-type]
    except graphopt.BudgetError as error:
        return error.minimum_bytes
    return 1


def step_of(model: nn.Module, ids: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad()
        model(ids).backward()

    return run


def times_of(steps: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each, in turns."""
    clock = clock_of(device, 0)
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if number:
                found[name].append(clock() - start)
    return {name: statistics.median(each) for name, each in found.items()}


def rows_of(small: bool, device: str, rounds: int) -> list[Row]:
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    eager = LossAlone(small).to(device, dtype)
    ids = torch.randint(0, 1000, (2, 64 if small else 1024), device=device)
    least, pieces = least_of(eager, ids), least_of(eager, ids, numerics="reordered")
    rows = [Row("the least, whole", least), Row("the least, reordered", pieces)]
    roomy = graphopt.optimize(copy.deepcopy(eager), "1TiB", example_inputs=ids)
    budget = max(least, roomy.graphopt.plan.eager_peak_bytes // 4)  # type: ignore[union-attr]
    models = {"eager": eager}
    for name, options in (("without", {}), ("offload", {"offload": "host" if device == "cuda" else "file"})):
        models[name] = graphopt.optimize(copy.deepcopy(eager), budget, example_inputs=ids, **options)  # type: ignore[arg-type]
    steps = {name: step_of(model, ids) for name, model in models.items()}
    times = times_of(steps, rounds, device)
    for name in ("without", "offload"):
        plan = models[name].graphopt.plan  # type: ignore[union-attr]
        pairs = zip(eager.parameters(), models[name].parameters(), strict=True)
        same = all(torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None)
        models[name].zero_grad()
        measured = peak_bytes(steps[name], [*models[name].parameters(), ids], device)
        ratio = times[name] / times["eager"]
        rows.append(Row(name, budget, plan.peak_bytes, measured, ratio, plan.moved_bytes, len(plan.recomputed), same))
    return rows


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    start = time.monotonic()
    rows = rows_of(options.small, options.device, options.rounds)
    for row in rows:
        print(
            f"{row.contender:22} budget {row.budget_bytes / 1e6:10.1f} MB  planned {row.planned_bytes / 1e6:10.1f}  "
            f"measured {row.measured_bytes / 1e6:10.1f}  ×{row.ratio:.3f}  moved {row.moved_bytes / 1e6:9.1f}  "
            f"recomputed {row.recomputed:4}  bits {row.is_eagers_bits}"
        )
    write_results(options.json, options.device, [vars(row) for row in rows])
    print(f"done in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
