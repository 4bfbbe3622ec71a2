"""A GPT-2 of 355 M parameters on one GPU: what a step takes in memory and time, ours and what PyTorch has.

python benchmarks/gpu_headline.py [--device cuda] [--batch 16] [--rounds 3] [--limit 110] [--json out.json]

float32 parameters under bfloat16 autocast, `scaled_dot_product_attention`, no dropout; forward and backward without
an optimizer. Contenders: eager; every block under `torch.utils.checkpoint`; PyTorch's partitioner at
`activation_memory_budget` 0.5 and 0.1; graphopt with nothing recomputed, at shares of eager's peak and at its
minimum. Peaks are `torch.cuda.max_memory_allocated` over a step, everything on the device counted; times are
medians of the rounds, eager and contender in alternation. The file is whole after every row.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch
from common import UNLIMITED_BYTES, write_results
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch import config as functorch
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.fx.graph import _BoxedCodeGen
from transformers import GPT2Config, GPT2LMHeadModel

import graphopt
from graphopt.measure import peak_bytes, ratio
from graphopt.pipeline import plan_within
from graphopt.planned import Choice

SHARES = (0.7, 0.5, 0.35, 0.25)
Step = Callable[[], None]


@dataclasses.dataclass
class Row:
    """One contender; bytes and seconds are a step's, `prepared` are seconds until its first step was over."""

    contender: str
    peak_bytes: int = 0
    seconds: float = 0.0
    ratio: float = 0.0
    quartiles: tuple[float, float] = (0.0, 0.0)
    budget_bytes: int = 0
    predicted_bytes: int = 0
    predicted_ratio: float = 0.0
    same_bits: bool = False
    loss: float = 0.0
    prepared: float = 0.0
    error: str = ""


class Loss(nn.Module):
    """GPT-2 that returns its loss alone, under autocast."""

    def __init__(self, layers: int, width: int, length: int, kind: str) -> None:
        super().__init__()
        sizes = {"n_positions": length, "n_embd": width, "n_layer": layers, "n_head": width // 64}
        config = GPT2Config(**sizes, use_cache=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        config._attn_implementation = "sdpa"
        self.model = GPT2LMHeadModel(config)
        self.model.loss_type = "ForCausalLM"  # unset, transformers warns inside the forward, which breaks the graph
        self.kind = kind

    def forward(self, ids: Tensor) -> Tensor:
        with torch.autocast(self.kind, torch.bfloat16):
            return self.model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]


class Benchmark:
    """One model on its device, and the rows so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.rows, self.started = args, list[Row](), time.monotonic()
        with torch.device(args.device):
            torch.manual_seed(0)
            self.model = Loss(args.layers, args.width, args.length, args.device).train()
            self.ids = torch.randint(0, 50257, (args.batch, args.length))
        self.eager = self.step(self.model._call_impl)
        self.bits: list[int] = []

    def step(self, call: Callable[..., Any]) -> Step:
        def run() -> None:
            self.model.zero_grad(set_to_none=True)
            call(self.ids).backward()

        return run

    def fingerprint(self, run: Step) -> list[int]:
        """A number for each gradient that tells its bits."""
        run()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        sums = torch.stack([g.view(torch.int32).sum(dtype=torch.int64) for g in gradients]).tolist()
        self.model.zero_grad(set_to_none=True)
        return list(sums)

    def peak(self, run: Step) -> int:
        self.model.zero_grad(set_to_none=True)
        peak = peak_bytes(run, [*self.model.parameters(), self.ids], self.args.device)
        self.model.zero_grad(set_to_none=True)
        return peak

    def measure(self, row: Row, run: Step) -> None:
        """Fill the row in and keep it; an error stands in for what could not be measured."""
        start = time.monotonic()
        try:
            run()
            self.synchronize()
            row.prepared = time.monotonic() - start
            row.peak_bytes = self.peak(run)
            bits = self.fingerprint(run)
            self.bits = self.bits or bits
            row.same_bits = bits == self.bits
            found = ratio(run, self.eager, self.args.rounds)
            row.seconds, row.ratio = found.a_seconds, found.median
            row.quartiles = (found.lower_quartile, found.upper_quartile)
        except (RuntimeError, graphopt.GraphoptError) as error:
            row.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.add(row)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        write_results(self.args.json, self.args.device, [dataclasses.asdict(each) for each in self.rows])
        print(
            f"{row.contender:34} {row.peak_bytes / 2**30:7.2f} GiB {row.seconds * 1e3:8.1f} ms ×{row.ratio:.3f} "
            f"(planned {row.predicted_bytes / 2**30:.2f} in {row.budget_bytes / 2**30:.2f} GiB ×"
            f"{row.predicted_ratio:.3f}) bits {row.same_bits} ready in {row.prepared:.1f} s {row.error}",
            flush=True,
        )
        gc.collect()

    def synchronize(self) -> None:
        if self.args.device != "cpu":
            torch.cuda.synchronize()

    @property
    def has_time(self) -> bool:
        return time.monotonic() - self.started < self.args.limit

    def run(self) -> None:
        """Every contender, as long as there is time."""
        self.measure(Row("eager"), self.eager)
        self.measure(Row("eager, again"), self.eager)
        with self.checkpointed():
            self.measure(Row("every block checkpointed"), self.eager_with_flag())
        self.graphopt()
        for budget in self.args.budgets:
            if self.has_time:
                with functorch.patch(activation_memory_budget=budget):
                    self.measure(Row(f"activation_memory_budget {budget}"), self.step(partitioned(self.model)))
                torch._dynamo.reset()

    @contextmanager
    def checkpointed(self) -> Iterator[None]:
        self.model.model.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            yield
        finally:
            self.model.model.gradient_checkpointing_disable()

    def eager_with_flag(self) -> Step:
        """Checkpointing for this step only, as the two sides alternate."""
        flagged = [m for m in self.model.modules() if getattr(m, "gradient_checkpointing", False)]

        def run() -> None:
            for module in flagged:
                module.gradient_checkpointing = True
            self.eager()
            for module in flagged:
                module.gradient_checkpointing = False

        return run

    def graphopt(self) -> None:
        """Captured once, planned for each budget."""
        start = time.monotonic()
        graphopt.optimize(self.model, UNLIMITED_BYTES, example_inputs=self.ids)
        seconds = time.monotonic() - start
        session = self.model.graphopt._session  # type: ignore[union-attr]
        whole, captured = self.model.graphopt.plan, session.planned[0].captured  # type: ignore[union-attr]
        print(f"captured and profiled in {seconds:.1f} s; resident {dict(whole.resident_bytes)}", flush=True)
        start = time.monotonic()
        least = sum(session.resident_bytes.values()) + captured.minimum_bytes
        print(f"the curve took {time.monotonic() - start:.1f} s; minimum {least:,} bytes", flush=True)
        row = Row("graphopt, nothing recomputed", predicted_bytes=whole.peak_bytes, predicted_ratio=1.0)
        self.measure(row, self.step(self.model))
        peak = self.rows[0].peak_bytes
        for share in (*SHARES, 0.0):
            budget = max(int(share * peak), least)
            if self.has_time and (share == 0 or budget > least):
                fitted = plan_within(captured, budget, session.resident_bytes, Choice())
                session.slots[0].compile(lambda _graph, fitted=fitted: fitted)
                name = f"graphopt, {share:.0%} of eager's peak" if share else "graphopt, minimum"
                total = sum(session.resident_bytes.values()) + captured.peak_bytes(fitted.schedule)
                seconds = fitted.simulation.seconds / captured.eager.seconds
                row = Row(name, budget_bytes=budget, predicted_bytes=total, predicted_ratio=seconds)
                self.measure(row, self.step(self.model))
        self.model = self.model.graphopt.restore()  # type: ignore[union-attr, assignment]


def partitioned(model: nn.Module) -> Callable[..., Any]:
    """torch.compile with PyTorch's partitioner and eager's kernels."""

    def boxed(module: fx.GraphModule, _inputs: object) -> Any:
        module.graph.set_codegen(_BoxedCodeGen())
        module.recompile()

        def call(arguments: list[Any]) -> Any:
            return module(arguments)

        call._boxed_call = True  # type: ignore[attr-defined]
        return call

    backend = aot_autograd(fw_compiler=boxed, partition_fn=min_cut_rematerialization_partition)
    return torch.compile(model._call_impl, backend=backend, dynamic=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=110, help="seconds after which nothing new is started")
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.5, 0.1])
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args()
    Benchmark(args).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
