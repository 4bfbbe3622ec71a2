"""A GPT-2 of 355 M parameters on one GPU: what a step takes in memory and time, ours and what PyTorch has.

python -m benchmarks.gpu.headline [--device cuda] [--batch 16] [--rounds 3] [--limit 110] [--json out.json]

float32 parameters under bfloat16 autocast, `scaled_dot_product_attention`, no dropout; forward and backward without
an optimizer. Contenders: eager; every block under `torch.utils.checkpoint`; graphopt at shares of eager's peak, at its
minimum and with nothing recomputed; PyTorch's partitioner at `activation_memory_budget` 0.5 and 0.1 with eager's
kernels and, with --inductor, with its compiler's. While transformers is traced it cannot see that no row is packed of
several texts, and builds a mask for each layer, which also keeps attention from its fastest kernel; so all contenders
are told. Peaks are `torch.cuda.max_memory_allocated` over a step, everything on the device counted; times are
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
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch import config as functorch
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.fx.graph import _BoxedCodeGen
from transformers import GPT2Config, GPT2LMHeadModel, masking_utils

import graphopt
from benchmarks.common import UNLIMITED_BYTES, write_results
from graphopt.device.measure import peak_bytes, ratio
from graphopt.plan.choice import Choice
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.pipeline import plan_within

masking_utils.find_packed_sequence_indices = lambda position_ids: None  # noqa: ARG005

#: Shares of eager's peak, the most telling first.
SHARES = (0.5, 0.35, 0.25, 0.7)
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
        settled()
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

    def synchronize(self) -> None:
        if self.args.device != "cpu":
            torch.cuda.synchronize()

    @property
    def has_time(self) -> bool:
        return time.monotonic() - self.started < self.args.limit

    def run(self) -> None:
        """Every contender, as long as there is time."""
        self.eager()  # once before, so that what libraries prepare is nobody's
        print("eager repeats itself:", self.fingerprint(self.eager) == self.fingerprint(self.eager), flush=True)
        self.measure(Row("eager"), self.eager)
        with self.checkpointed():
            self.measure(Row("every block checkpointed"), self.eager_with_flag())
        self.graphopt()
        for budget in self.args.budgets:
            if self.has_time:
                with functorch.patch(activation_memory_budget=budget):
                    self.measure(Row(f"activation_memory_budget {budget}"), self.step(partitioned(self.model)))
                torch._dynamo.reset()
        if self.args.inductor and self.has_time:
            self.measure(Row("torch.compile"), self.step(torch.compile(self.model._call_impl, dynamic=False)))

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
        whole = self.model.graphopt.plan  # type: ignore[union-attr]
        call = self.model.graphopt.in_force  # type: ignore[union-attr]
        study: GraphStudy = call.planned[0].study
        self.say(f"captured and profiled, resident {dict(whole.resident_bytes)}", start)
        start = time.monotonic()
        least = sum(call.resident_bytes.values()) + study.minimum_bytes
        self.say(f"the curve of {len(study.graph.problem.ops)} ops, minimum {least:,} bytes", start)
        settled()
        eager_bytes = self.rows[0].peak_bytes
        budgets = {"at the peak of every block checkpointed": self.rows[1].peak_bytes}
        budgets |= {f"{share:.0%} of eager's peak": int(share * eager_bytes) for share in SHARES}
        budgets = {name: budget for name, budget in budgets.items() if budget > least}
        for name, budget in {**budgets, "minimum": least, "nothing recomputed": UNLIMITED_BYTES}.items():
            if self.has_time:
                self.at_budget(study, name, budget)
        self.model = self.model.graphopt.restore()  # type: ignore[union-attr, assignment]

    def at_budget(self, study: GraphStudy, name: str, budget: int) -> None:
        """Planned from the capture at hand, so that Dynamo need not trace again."""
        call = self.model.graphopt.in_force  # type: ignore[union-attr]
        start = time.monotonic()
        fitted = plan_within(study, budget, call.resident_bytes, Choice())
        call.graphs[0].compile("auto", lambda _graph: fitted.schedule)
        total = sum(call.resident_bytes.values()) + fitted.peak_bytes
        seconds = fitted.simulation.seconds / study.eager.seconds
        row = Row(f"graphopt, {name}", predicted_bytes=total, budget_bytes=budget, predicted_ratio=seconds)
        self.say(f"{row.contender}: planned", start)
        self.measure(row, self.step(self.model))

    def say(self, what: str, start: float) -> None:
        """What took the time since then."""
        print(f"  {what}: {time.monotonic() - start:.1f} s", flush=True)


def settled() -> None:
    """What is there by now stays: looking through it at each collection of garbage would take most of the time."""
    gc.collect()
    gc.freeze()


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
    parser.add_argument("--inductor", action="store_true", help="torch.compile's own compiler too, which takes minutes")
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args()
    Benchmark(args).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
