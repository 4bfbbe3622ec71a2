"""Blocks in pieces: least budgets, times and planning of models whose largest values are in MLPs or attention.

python -m benchmarks.blocks [--only NAME ...] [--json out.json]

Each model is planned at two budgets, in "bitwise" and in "reordered": the least of the first, and half-way from there
to eager's peak. Peaks are measured from outside, times are processor time on one thread, medians of rounds in which all
take turns, over eager's. What planning takes is processor time of all of `optimize`, with a cache that knows neither
prices nor plans.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import graphopt
from benchmarks.common import about, options_of_cases, write_json
from graphopt.device.measure import peak_bytes

ROUNDS, WARM_UP = 5, 2
CPU = torch.device("cpu")


class LossOnly(nn.Module):
    """A language model of transformers' that returns its loss alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Mean loss of all tokens."""
        return self.model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]


def gpt2(width: int, attention: str) -> nn.Module:
    """Four layers and 512 words."""
    from transformers import GPT2Config, GPT2LMHeadModel

    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"vocab_size": 512, "n_layer": 4, "n_embd": width, "n_head": 4, "n_positions": 1024}
    config = GPT2Config(
        use_cache=False, attn_implementation=attention, bos_token_id=0, eos_token_id=0, **sizes, **drops
    )
    return LossOnly(GPT2LMHeadModel(config))


def llama(width: int, attention: str) -> nn.Module:
    """Four layers, 512 words, and an MLP of four times the width."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=512, use_cache=False, attn_implementation=attention, **sizes)
    return LossOnly(LlamaForCausalLM(config))


#: The model, and a batch of it.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "GPT-2, MLPs, 8 x 256": (lambda: gpt2(256, "sdpa"), (8, 256)),
    "Llama, MLPs, 8 x 256": (lambda: llama(256, "sdpa"), (8, 256)),
    "GPT-2, scores, 2 x 1024": (lambda: gpt2(128, "eager"), (2, 1024)),
    "Llama, scores, 2 x 1024": (lambda: llama(128, "eager"), (2, 1024)),
}


def run_case(name: str, rounds: int) -> dict[str, Any]:
    """Smallest budgets, and a row for each way and budget."""
    build, shape = CASES[name]
    ids = torch.randint(0, 512, shape, generator=torch.Generator().manual_seed(0))
    plain = _fresh(build)
    eager = _step(plain, ids)
    eager()
    steps = {"eager": eager}
    plain.zero_grad()
    eager_bytes = peak_bytes(eager, [*plain.parameters(), *plain.buffers(), ids], CPU)
    least = {numerics: _least(_fresh(build), ids, numerics) for numerics in ("bitwise", "reordered")}
    between = (least["bitwise"] + eager_bytes) // 2
    budgets = {"bitwise": [least["bitwise"], between], "reordered": [least["reordered"], least["bitwise"], between]}
    rows = []
    for numerics, sizes in budgets.items():
        for budget_bytes in sizes:
            row, step = _planned(_fresh(build), ids, budget_bytes, numerics)
            key = f"{numerics}, {budget_bytes}"
            rows.append({"key": key, "numerics": numerics, **row})
            steps[key] = step
    seconds = _in_turns(steps, rounds)
    for row in rows:
        row["time_over_eager"] = seconds[row["key"]] / seconds["eager"]
    return {"case": name, "eager_bytes": eager_bytes, "smallest_budget_bytes": least, "rows": rows}


def _fresh(build: Callable[[], nn.Module]) -> nn.Module:
    torch._dynamo.reset()
    torch.manual_seed(0)
    return build()


def _planned(
    model: nn.Module, ids: Tensor, budget_bytes: int, numerics: Any
) -> tuple[dict[str, Any], Callable[[], None]]:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["GRAPHOPT_CACHE_DIR"] = cache
        started = time.process_time()
        graphopt.optimize(model, budget_bytes, example_inputs=ids, numerics=numerics)
        plan_seconds = time.process_time() - started
    step = _step(model, ids)
    for _ in range(WARM_UP):
        step()
    model.zero_grad()
    measured = peak_bytes(step, [*model.parameters(), *model.buffers(), ids], CPU)
    pieces = ", ".join(map(str, model.graphopt.plan.pieces))  # type: ignore[union-attr]
    row = {"budget_bytes": budget_bytes, "peak_bytes": measured, "pieces": pieces, "plan_seconds": plan_seconds}
    return row, step


def _least(model: nn.Module, ids: Tensor, numerics: Any) -> int:
    try:
        graphopt.optimize(model, 1_000_000, example_inputs=ids, numerics=numerics)
    except graphopt.BudgetError as error:
        return error.minimum_bytes
    raise AssertionError("a million bytes hold none of these models")


def _step(model: nn.Module, ids: Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad()
        model(ids).backward()

    return step


def _in_turns(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name in list(steps) if number % 2 == 0 else list(steps)[::-1]:
            steps[name]()  # behind the steps of others this one is watched more closely
            started = time.process_time()
            steps[name]()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(each) for name, each in seconds.items()}


def table_of(cases: list[dict[str, Any]]) -> Table:
    """The results for people."""
    columns = ("model", "eager", "numerics", "budget", "measured", "time over eager's", "pieces", "planning, s")
    table = Table(*columns, title="Bytes in MB")
    for case in cases:
        for row in case["rows"]:
            sizes = [f"{size / 1e6:.1f}" for size in (row["budget_bytes"], row["peak_bytes"])]
            shown = [*sizes, f"{row['time_over_eager']:.2f}", row["pieces"], f"{row['plan_seconds']:.1f}"]
            table.add_row(case["case"], f"{case['eager_bytes'] / 1e6:.1f}", row["numerics"], *shown)
    return table


def main() -> None:
    """The command line."""
    options = options_of_cases(__doc__, CASES, ROUNDS)
    torch.set_num_threads(1)
    cases = []
    for name in options.only:
        cases.append(run_case(name, options.rounds))
        write_json(options.json, {**about(CPU), "cases": cases})
    Console(width=150).print(table_of(cases))


if __name__ == "__main__":
    main()
