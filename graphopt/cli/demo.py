"""The demo: a small GPT-2 learns to write Python's own documentation, inside a third of eager's memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

import graphopt
from graphopt.api.verify import verify_model
from graphopt.base.errors import UsageError
from graphopt.base.records import write_text
from graphopt.base.units import format_bytes
from graphopt.device import measure
from graphopt.report.chart import sparkline
from graphopt.report.data import Report
from graphopt.report.html import render_html

BATCH, LENGTH = 8, 128


def run_demo(steps: int = 24, html: str | None = None) -> dict[str, Any]:
    """Plan, verify and train; prints as it goes and returns the figures. `html` is where the report goes as a page."""
    if steps < 2:
        raise UsageError(f"--steps must be at least 2, got {steps}")
    start = time.monotonic()
    model, batches = make_model(), make_batches()
    example = next(batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    train_once(model, optimizer, example)  # the optimizer's state is made in the first step
    eager_peak = step_peak(model, optimizer, example)
    budget = eager_peak // 3
    print(f"GPT-2 with {sum(p.numel() for p in model.parameters()):,} parameters, {BATCH} x {LENGTH} bytes of text.")
    print(f"A step of eager takes {format_bytes(eager_peak)}. The budget is a third of it: {format_bytes(budget)}.\n")

    result = verify_model(model, example, mem_budget=budget, optimizer=optimizer, time_rounds=1)
    print(result.report, "\n")
    print("\n".join(("Verified:", *result.lines)), "\n")

    graphopt.optimize(model, budget, example_kwargs=example, optimizer=optimizer, plan=result.report.plan)
    losses = [train_once(model, optimizer, next(batches)) for _ in range(steps)]
    if html is not None:
        trained: Report = model.graphopt.report  # type: ignore[union-attr, assignment]
        write_text(html, render_html(replace(trained, measured=result.report.measured)))
    peak = step_peak(model, optimizer, example)
    print(f"{steps} steps of AdamW: loss {losses[0]:.3f} -> {losses[-1]:.3f}  {sparkline(losses)}")
    print(f"peak {format_bytes(peak)}, with a budget of {format_bytes(budget)}; eager takes {format_bytes(eager_peak)}")
    print(f"all of it took {time.monotonic() - start:.0f} s")
    return {
        "budget_bytes": budget,
        "peak_bytes": peak,
        "eager_peak_bytes": eager_peak,
        "predicted_bytes": result.report.plan.peak_bytes,
        "bitwise": result.bitwise,
        "losses": losses,
    }


def make_model() -> torch.nn.Module:
    """A GPT-2 with random weights, from transformers."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        raise UsageError("the demo needs transformers: pip install 'transformers>=4.50'") from None
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_embd=128, n_layer=6, n_head=4, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    # Left alone it guesses, warns, and breaks the graph with that.
    model.loss_type = "ForCausalLM"
    trained: torch.nn.Module = model.train()
    return trained


def make_batches() -> Iterator[dict[str, torch.Tensor]]:
    """Random pieces of Python's documentation, one byte a token."""
    from pydoc_data import topics

    text = "\n".join(topics.topics.values()).encode()
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(1)
    while True:
        starts = torch.randint(len(tokens) - LENGTH, (BATCH,), generator=generator).tolist()
        ids = torch.stack([tokens[i : i + LENGTH] for i in starts])
        yield {"input_ids": ids, "labels": ids}


def train_once(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> float:
    """One step as any training loop has it; returns the loss."""
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.item())


def step_peak(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> int:
    """Bytes at the peak of one whole step, update included, measured from outside."""
    state = [t for entry in optimizer.state.values() for t in entry.values() if isinstance(t, torch.Tensor)]
    resident: Sequence[torch.Tensor] = [*model.parameters(), *model.buffers(), *state, *batch.values()]
    return measure.peak_bytes(lambda: train_once(model, optimizer, batch), resident, "cpu")
