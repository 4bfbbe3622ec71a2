"""Logits in pieces: smallest budgets and times of language models, beside rivals at the same peaks.

python -m benchmarks.chunks [--only NAME ...] [--json out.json]

GPT-2-, Llama- and T5-like models of 32,000 and 128,000 words. Smallest budgets are those of `optimize`: with whole
logits, with `numerics="reordered"`, and of the same model with `torch.nn.functional.linear_cross_entropy` written into
it. Rivals are that model in eager, and Inductor with its auto-chunker; graphopt gets the peak of each as its budget.
Peaks are measured from outside, by the allocator's events, times are processor time on one thread: all ways of a model
take turns, and medians are over those of eager with whole logits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import graphopt
from benchmarks.common import about, options_of_cases, write_json
from graphopt.device.measure import peak_bytes

ROUNDS, WARM_UP = 3, 2
BATCH = (4, 128)
#: Of `linear_cross_entropy` and the auto-chunker: 64 rows of 512 in a piece, the fastest that was tried of 16 to 256.
PIECES = 8
#: Models of more words are not compiled: with each way that is timed there it would take longer than all else.
MOST_COMPILED = 32_000
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Family:
    """A model of transformers' with so many words, the states that its head reads, and the words that these foresee."""

    build: Callable[[int], nn.Module]
    hidden: Callable[[Any, Tensor], Tensor]
    targets: Callable[[Tensor], Tensor]


def gpt2(words: int) -> nn.Module:
    """Two layers; head and embedding are one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"n_layer": 2, "n_embd": 128, "n_head": 4, "n_positions": 128}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=words, use_cache=False, bos_token_id=0, eos_token_id=0, **sizes, **drops)
    )


def llama(words: int) -> nn.Module:
    """Two layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=words, use_cache=False, **sizes))


def t5(words: int) -> nn.Module:
    """Two layers of each kind, with a gated activation."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 128, "d_kv": 32, "d_ff": 344, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    config = T5Config(
        vocab_size=words, use_cache=False, feed_forward_proj="gated-gelu", decoder_start_token_id=0, **sizes
    )
    return T5ForConditionalGeneration(config)


def _of_decoder(model: Any, ids: Tensor) -> Tensor:
    return model.base_model(input_ids=ids).last_hidden_state  # type: ignore[no-any-return]


def _of_t5(model: Any, ids: Tensor) -> Tensor:
    read = model.encoder(input_ids=ids).last_hidden_state
    hidden = model.decoder(input_ids=model._shift_right(ids), encoder_hidden_states=read).last_hidden_state
    return hidden * model.model_dim**-0.5 if model.config.scale_decoder_outputs else hidden  # type: ignore[no-any-return]


def _next(ids: Tensor) -> Tensor:
    return F.pad(ids, (0, 1), value=-100)[:, 1:]


FAMILIES = {
    "GPT-2": Family(gpt2, _of_decoder, _next),
    "Llama": Family(llama, _of_decoder, _next),
    "T5": Family(t5, _of_t5, lambda ids: ids),
}
CASES = {f"{name}, {words:,} words": (name, words) for words in (32_000, 128_000) for name in FAMILIES}


class Loss(nn.Module):
    """A model of a family that returns its loss alone.

    It is the model's own, or made of states and weight: "flat" of all rows at once, "by hand" in pieces of them.
    """

    def __init__(self, family: Family, words: int, how: str = "own") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model, self.family, self.how = family.build(words), family, how

    def forward(self, ids: Tensor) -> Tensor:
        """Mean loss of all tokens."""
        if self.how == "own":
            return self.model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]
        hidden, targets = self.family.hidden(self.model, ids).flatten(0, 1), self.family.targets(ids).flatten()
        weight = self.model.get_output_embeddings().weight  # type: ignore[operator]
        if self.how == "flat":
            return F.cross_entropy(F.linear(hidden, weight), targets)
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=hidden.shape[0] // PIECES)
        return F.linear_cross_entropy(hidden, weight, targets, options=options)  # type: ignore[no-any-return]


@dataclass
class Way:
    """One way to train: what it takes, and its step, to be timed."""

    name: str
    peak_bytes: int
    step: Callable[[], None]
    budget_bytes: int = 0
    pieces: str = ""
    plan_seconds: float = 0.0


def run_case(name: str, rounds: int) -> dict[str, Any]:
    """Smallest budgets, and a row for each way."""
    family_name, words = CASES[name]
    family = FAMILIES[family_name]
    ids = torch.randint(0, words, BATCH, generator=torch.Generator().manual_seed(0))
    smallest = {
        "whole": _smallest_budget(Loss(family, words), ids, "bitwise"),
        "reordered": _smallest_budget(Loss(family, words), ids, "reordered"),
        "by hand": _smallest_budget(Loss(family, words, "by hand"), ids, "bitwise"),
    }
    rivals = [
        _way("eager", Loss(family, words), ids),
        _way("linear_cross_entropy in eager", Loss(family, words, "by hand"), ids),
        _inductor(Loss(family, words, "flat"), ids) if words <= MOST_COMPILED else None,
    ]
    ways = [_planned("graphopt, smallest budget", Loss(family, words), ids, smallest["reordered"])]
    for rival in rivals[1:]:
        if rival is not None:
            ways.append(_planned(f"graphopt, peak of {rival.name}", Loss(family, words), ids, rival.peak_bytes))
    there = [way for way in (*rivals, *ways) if way is not None]
    seconds = _in_turns(there, rounds)
    rows = [
        {
            "way": way.name,
            "budget_bytes": way.budget_bytes,
            "peak_bytes": way.peak_bytes,
            "seconds": seconds[way.name],
            "time_over_eager": seconds[way.name] / seconds["eager"],
            "pieces": way.pieces,
            "plan_seconds": way.plan_seconds,
        }
        for way in there
    ]
    return {"case": name, "smallest_budget_bytes": smallest, "rows": rows}


def _way(name: str, model: nn.Module, ids: Tensor, **found: Any) -> Way:
    def step() -> None:
        model.zero_grad()
        model(ids).backward()

    for _ in range(WARM_UP):
        step()
    model.zero_grad()
    return Way(name, peak_bytes(step, [*model.parameters(), *model.buffers(), ids], CPU), step, **found)


def _planned(name: str, model: nn.Module, ids: Tensor, budget_bytes: int) -> Way | None:
    try:
        graphopt.optimize(model, budget_bytes, example_inputs=ids, numerics="reordered")
    except graphopt.BudgetError:
        return None
    pieces = ", ".join(map(str, model.graphopt.plan.pieces))  # type: ignore[union-attr]
    seconds = model.graphopt.report.plan_seconds  # type: ignore[union-attr]
    return _way(name, model, ids, budget_bytes=budget_bytes, pieces=pieces, plan_seconds=seconds)


def _inductor(model: nn.Module, ids: Tensor) -> Way | None:
    """Inductor with its auto-chunker; None where it cuts nothing, of which only its log tells.

    It refuses logits that are viewed as a batch of sequences, as models of transformers' do, and by default those of
    less than 8 times the elements of states and weight together.
    """
    import torch._inductor.config as settings
    import torch._inductor.fx_passes.joint_graph  # else its own package cannot be imported
    from torch._inductor.fx_passes import auto_chunker

    cut = []
    chunk = auto_chunker.chunk

    def noted(graph: Any) -> Any:
        found = chunk(graph)
        cut.append(found)
        return found

    torch._dynamo.reset()
    auto_chunker.chunk = noted
    try:
        chosen = {"enable": True, "num_chunk": PIECES, "amplify_ratio_threshold": 1}
        with settings.patch({f"auto_chunker.{key}": value for key, value in chosen.items()}):
            way = _way("Inductor, auto-chunker", torch.compile(model), ids)  # type: ignore[arg-type]
    finally:
        auto_chunker.chunk = chunk
    return way if cut else None


def _smallest_budget(model: nn.Module, ids: Tensor, numerics: Any) -> int:
    torch._dynamo.reset()
    try:
        graphopt.optimize(model, 1_000_000, example_inputs=ids, numerics=numerics)
    except graphopt.BudgetError as error:
        return error.minimum_bytes
    raise AssertionError("a million bytes hold no model of so many words")


def _in_turns(ways: list[Way], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(rounds):
        for way in ways if number % 2 == 0 else ways[::-1]:
            way.step()  # behind the steps of others this one is watched more closely
            started = time.process_time()
            way.step()
            seconds[way.name].append(time.process_time() - started)
    return {name: statistics.median(each) for name, each in seconds.items()}


def tables_of(cases: list[dict[str, Any]]) -> list[Table]:
    """The results for people."""
    floors = Table("model", "whole", "reordered", "by hand", "over by hand", title="Smallest budgets, MB")
    times = Table("model", "way", "peak, MB", "time over eager's", "pieces", title="At the same peaks")
    for case in cases:
        whole, ours, theirs = (case["smallest_budget_bytes"][key] for key in ("whole", "reordered", "by hand"))
        floors.add_row(case["case"], *(f"{size / 1e6:.1f}" for size in (whole, ours, theirs)), f"{ours / theirs:.3f}")
        for row in case["rows"]:
            shown = [f"{row['peak_bytes'] / 1e6:.1f}", f"{row['time_over_eager']:.2f}", row["pieces"]]
            times.add_row(case["case"], row["way"], *shown)
    return [floors, times]


def main() -> None:
    """The command line."""
    options = options_of_cases(__doc__, CASES, ROUNDS)
    torch.set_num_threads(1)
    cases = []
    for name in options.only:
        started = time.perf_counter()
        cases.append(run_case(name, options.rounds))
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        write_json(options.json, {**about(CPU), "pieces_by_hand": PIECES, "cases": cases})
    for table in tables_of(cases):
        Console(width=140).print(table)


if __name__ == "__main__":
    main()
