"""Logits in pieces: smallest budgets and times of language models, whole, in pieces, and with losses cut by hand.

python -m benchmarks.chunks [--only NAME ...] [--json out.json]

"by hand" is the model with `torch.utils.checkpoint` around each of 32 pieces of head and loss, "linear_cross_entropy"
with PyTorch's own op in pieces of as many rows. Smallest budgets are those of `optimize`; peaks are measured from
outside, by the allocator's events. Times are processor time on one thread over eager's, medians of rounds in which
all ways take turns, each at its smallest budget and at one that all of them have: the smallest of the whole, by 1.1.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import graphopt
from benchmarks.common import about, write_json
from graphopt.device.measure import peak_bytes

PIECES, ROUNDS = 32, 5
CPU = torch.device("cpu")


class Small(nn.Module):
    """An embedding, a layer, a head; the loss is made whole, by hand in pieces, or by PyTorch's own op."""

    def __init__(self, classes: int, width: int, how: str = "whole") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.body = nn.Embedding(classes, width), nn.Linear(width, width)
        self.head, self.how = nn.Linear(width, classes, bias=False), how

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(self.embed(ids))).flatten(0, 1)
        return loss_of(hidden, self.head.weight, ids.flatten(), self.how)


class OfTransformers(nn.Module):
    """A causal language model of transformers', with its own loss or one of ours; it returns the loss alone."""

    def __init__(self, model: nn.Module, how: str = "whole") -> None:
        super().__init__()
        self.model, self.how = model, how

    def forward(self, ids: Tensor) -> Tensor:
        if self.how == "whole":
            return self.model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]
        hidden = self.model.base_model(input_ids=ids).last_hidden_state.flatten(0, 1)
        targets = F.pad(ids, (0, 1), value=-100)[:, 1:].flatten()
        return loss_of(hidden, self.model.get_output_embeddings().weight, targets, self.how)  # type: ignore[operator]


def loss_of(hidden: Tensor, weight: Tensor, targets: Tensor, how: str) -> Tensor:
    """The mean cross-entropy of all rows."""
    if how == "whole":
        return F.cross_entropy(F.linear(hidden, weight), targets)
    rows = -(-hidden.shape[0] // PIECES)
    if how == "linear_cross_entropy":
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
        return F.linear_cross_entropy(hidden, weight, targets, options=options)  # type: ignore[no-any-return]

    def piece(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")

    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    sums = [checkpoint(piece, h, weight, t, use_reentrant=False) for h, t in parts]
    return sum(sums) / (targets != -100).sum()  # type: ignore[return-value]


def gpt2(how: str) -> nn.Module:
    """Four layers and 32,000 words; head and embedding are one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"n_layer": 4, "n_embd": 256, "n_head": 4, "n_positions": 256}
    config = GPT2Config(vocab_size=32_000, use_cache=False, bos_token_id=0, eos_token_id=0, **sizes, **drops)
    return OfTransformers(GPT2LMHeadModel(config), how)


def llama(how: str) -> nn.Module:
    """Four layers and 32,000 words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
    return OfTransformers(LlamaForCausalLM(LlamaConfig(vocab_size=32_000, use_cache=False, **sizes)), how)


#: Name -> the model by how its loss is made, and a batch.
CASES: dict[str, tuple[Callable[[str], nn.Module], tuple[int, int], int]] = {
    "8,000 words, width 64, 4 x 128": (lambda how: Small(8_000, 64, how), (4, 128), 8_000),
    "16,000 words, width 128, 8 x 256": (lambda how: Small(16_000, 128, how), (8, 256), 16_000),
    "GPT-2, 32,000 words, 4 x 256": (gpt2, (4, 256), 32_000),
    "Llama, 32,000 words, 4 x 256": (llama, (4, 256), 32_000),
}
#: How a loss is made, and what of graphopt's numerics.
WAYS = {
    "whole": ("whole", "bitwise"),
    "reordered": ("whole", "reordered"),
    "by hand": ("by hand", "bitwise"),
    "linear_cross_entropy": ("linear_cross_entropy", "bitwise"),
}


def run_case(name: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each way."""
    build, shape, classes = CASES[name]
    ids = torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(0))
    eager = build("whole")
    rows, steps = [], {"eager": _step(eager, ids)}
    whole_bytes = 0
    for way, (how, numerics) in WAYS.items():
        least_bytes, why_not = _smallest_budget(build(how), ids, numerics)
        if way == "whole":
            whole_bytes = int(1.1 * least_bytes)
        row: dict[str, Any] = {"case": name, "way": way, "smallest_budget_bytes": least_bytes, "why_not": why_not}
        for at, budget in (("least", least_bytes), ("equal", whole_bytes)):
            if not why_not and least_bytes <= budget:
                row |= _planned(build(how), ids, budget, numerics, at, steps, way)
        plain = build(how)
        steps[f"{way} in eager"] = _step(plain, ids)
        row["eager_peak_bytes"] = peak_bytes(_step(plain, ids), [*plain.parameters(), ids], CPU)
        rows.append(row)
    seconds = _in_turns(steps, rounds)
    for row in rows:
        for at in ("least", "equal", "in eager"):
            key = f"{row['way']} {at}"
            if key in seconds:
                row[f"time_{at.replace(' ', '_')}"] = seconds[key] / seconds["eager"]
    return rows


def _planned(
    model: nn.Module, ids: Tensor, budget: int, numerics: Any, at: str, steps: dict[str, Callable[[], None]], way: str
) -> dict[str, Any]:
    graphopt.optimize(model, budget, example_inputs=ids, numerics=numerics)
    plan = model.graphopt.plan  # type: ignore[union-attr]
    step = steps[f"{way} {at}"] = _step(model, ids)
    step()
    model.zero_grad()
    measured = peak_bytes(step, [*model.parameters(), ids], CPU)
    return {
        f"budget_{at}_bytes": budget,
        f"measured_{at}_bytes": measured,
        f"overhead_{at}": plan.overhead,
        f"pieces_{at}": ", ".join(map(str, plan.pieces)),
        f"plan_seconds_{at}": model.graphopt.report.plan_seconds,  # type: ignore[union-attr]
    }


def _smallest_budget(model: nn.Module, ids: Tensor, numerics: Any) -> tuple[int, str]:
    try:
        graphopt.optimize(copy.deepcopy(model), 1_000_000, example_inputs=ids, numerics=numerics)
    except graphopt.BudgetError as error:
        return error.minimum_bytes, ""
    except graphopt.GraphoptError as error:
        return 0, str(error).splitlines()[0]
    return 1_000_000, ""


def _step(model: nn.Module, ids: Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad()
        model(ids).backward()

    return step


def _in_turns(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            started = time.process_time()
            step()
            if number:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(each) for name, each in seconds.items()}


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The rows for people."""
    columns = ("case", "way", "smallest budget", "measured", "eager", "time there", "time at equal budget", "pieces")
    made = Table(*columns, title="Bytes in MB; times over eager's with whole logits")
    for row in rows:
        sizes = [row.get(key) for key in ("smallest_budget_bytes", "measured_least_bytes", "eager_peak_bytes")]
        times = [row.get("time_least"), row.get("time_equal")]
        shown = [f"{size / 1e6:.1f}" if size else "-" for size in sizes]
        shown += [f"{ratio:.2f}" if ratio else "-" for ratio in times]
        made.add_row(row["case"], row["way"], *shown, row.get("pieces_least", row["why_not"]))
    return made


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in options.only for row in run_case(name, options.rounds)]
    Console(width=160).print(table_of(rows))
    write_json(options.json, {**about(CPU), "pieces_by_hand": PIECES, "rows": rows})


if __name__ == "__main__":
    main()
