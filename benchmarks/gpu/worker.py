"""One process of `gpu.py`: runs models at all budgets on a device and prints a line of JSON per cell."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from typing import Any
from unittest import mock

try:
    import rich  # noqa: F401
except ImportError:  # a bare machine: what is shown in a terminal is not needed here
    from transformers.utils.import_utils import is_rich_available

    is_rich_available()  # it remembers that there is none
    for _name in ("rich", "rich.box", "rich.console", "rich.progress", "rich.table", "rich.text"):
        sys.modules[_name] = mock.MagicMock(name=_name, __spec__=ModuleSpec(_name, None))

import torch
from torch import Tensor, nn
from torch.utils import _pytree

import graphopt
from benchmarks.common import UNLIMITED_BYTES, LossModule, about, build_case
from benchmarks.gpu.matrix import MARK, REPORTED, SHARES, Row
from graphopt.device import measure
from graphopt.device.snapshot import State, restore, snapshot
from graphopt.device.storages import tensors_in, unique_storage_bytes
from graphopt.plan.choice import Choice
from graphopt.plan.model_plan import build_plan
from graphopt.plan.pipeline import plan_within
from graphopt.verify.step_result import RecordedStep, differences, run_step
from tests.support.deterministic import deterministic

TIMED_SHARES = (1.0, 0.5)


class TimeLimit(BaseException):
    """The model's time is up. No Exception, so that nobody takes it for a failed capture."""


@dataclasses.dataclass
class Subject:
    """A model on its device with its inputs, and what it is compared with."""

    name: str
    device: torch.device
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    eager: RecordedStep = dataclasses.field(default_factory=lambda: RecordedStep({}))
    captured: RecordedStep = dataclasses.field(default_factory=lambda: RecordedStep({}))
    eager_repeats: bool = True
    eager_peak_bytes: int = 0
    held_bytes: int = 0
    start: State | None = None

    @property
    def resident(self) -> list[Tensor]:
        return [*self.module.parameters(), *self.module.buffers(), *tensors_in([self.args, self.kwargs])]

    def step(self, call: Callable[..., Any]) -> Callable[[], None]:
        """A training step through `call`, gradients dropped before it."""

        def run() -> None:
            self.module.zero_grad(set_to_none=True)
            call(*self.args, **self.kwargs).backward()

        return run

    def run(self, call: Callable[..., Any]) -> RecordedStep:
        """The results of one step from the first buffers and a fixed seed, in host memory."""
        if self.start is not None:
            restore(self.module, self.start)
        torch.manual_seed(1)
        found = run_step(self.module, call, self.args, self.kwargs)
        return RecordedStep({name: tensor.cpu() for name, tensor in found.tensors.items()})

    def peak_bytes(self, call: Callable[..., Any]) -> tuple[int, int]:
        """Measured peak of a step, and the peak as requested (0 where the allocator does not say)."""
        self.module.zero_grad(set_to_none=True)
        peak = measure.peak_bytes(self.step(call), self.resident, self.device)
        self.module.zero_grad(set_to_none=True)
        if self.device.type != "cuda":
            return peak, 0
        return peak, int(torch.cuda.memory_stats(self.device).get("requested_bytes.all.peak", 0))

    def plan(self, budget_bytes: int) -> graphopt.Plan:
        """Put the model inside a budget."""
        torch._dynamo.reset()
        inputs = {"example_inputs": self.args, "example_kwargs": self.kwargs}
        graphopt.optimize(self.module, budget_bytes, **inputs)
        plan: graphopt.Plan = self.module.graphopt.plan  # type: ignore[union-attr, assignment]
        return plan


def prepare(name: str, device: torch.device, times: int) -> Subject:
    """Build a model on the device, with its batch repeated, warm it up, and take eager's figures."""
    case = build_case(name)

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return torch.cat([leaf] * times).to(device) if times > 1 and leaf.ndim else leaf.to(device)

    module = LossModule(case).to(device)
    module.train()
    args, kwargs = _pytree.tree_map(move, (case.args, case.kwargs))
    subject = Subject(name, device, module, args, kwargs)
    subject.start = snapshot(module)
    subject.eager = subject.run(module._call_impl)
    subject.eager_repeats = not differences(subject.eager, subject.run(module._call_impl))
    subject.held_bytes = held_bytes(subject)
    subject.eager_peak_bytes = subject.peak_bytes(module._call_impl)[0]
    return subject


def held_bytes(subject: Subject) -> int:
    """What is allocated on the device beside the model and its inputs: libraries' workspaces."""
    if subject.device.type != "cuda":
        return 0
    subject.module.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.synchronize(subject.device)
    known = unique_storage_bytes(subject.resident, subject.device)
    return max(0, torch.cuda.memory_allocated(subject.device) - known)


def run_model(name: str, device: torch.device, rounds: int = 0, times: int = 1) -> Iterator[Row]:
    """Every budget of one model: first with nothing recomputed, then the shares of eager's peak, then the minimum."""
    started = time.perf_counter()
    subject = prepare(name, device, times)
    whole = subject.plan(UNLIMITED_BYTES)
    call = subject.module.graphopt.in_force  # type: ignore[union-attr]
    planned, resident = call.planned, call.resident_bytes
    subject.captured = subject.run(subject.module)
    yield cell(subject, 1.0, UNLIMITED_BYTES, whole, rounds)
    for share in (*SHARES, None):
        budget = whole.minimum_bytes if share is None else int(share * subject.eager_peak_bytes)
        try:
            if len(call.graphs) == 1:  # planned from the capture at hand: Dynamo need not trace again
                fitted = plan_within(planned[0].study, budget, resident, Choice())
                call.graphs[0].compile("auto", lambda _graph, fitted=fitted: fitted.schedule)
                plan = build_plan(name, budget, resident, [fitted])
            else:
                plan = subject.plan(budget)
        except graphopt.GraphoptError as error:
            yield {**_known(subject, share, budget, whole), "error": f"{type(error).__name__}: {error}"}
            continue
        yield cell(subject, share, budget, plan, rounds)
    ended = time.perf_counter() - started
    yield {"kind": "model", "model": name, "error": "", "seconds": ended, "eager_repeats": subject.eager_repeats}


def cell(subject: Subject, share: float | None, budget: int, plan: graphopt.Plan, rounds: int) -> Row:
    """Run the planned model, compare it, measure it."""
    seen = subject.run(subject.module)
    unlike_eager = differences(subject.eager, seen)
    measured, requested = subject.peak_bytes(subject.module)
    ratio = None
    if rounds and share in TIMED_SHARES:
        ratio = measure.ratio(subject.step(subject.module), subject.step(subject.module._call_impl), rounds).median
    subject.module.zero_grad(set_to_none=True)
    return {
        **_known(subject, share, budget, plan),
        "error": "",
        "predicted_bytes": plan.peak_bytes,
        "measured_bytes": measured,
        "requested_bytes": requested,
        "overhead": plan.overhead,
        "time_ratio": ratio,
        "unlike_captured": [gap.tensor for gap in differences(subject.captured, seen)],
        "unlike_eager": [gap.tensor for gap in unlike_eager],
        "worst_relative": max((gap.relative for gap in unlike_eager), default=0.0),
        "still_held_bytes": held_bytes(subject),
    }


def _known(subject: Subject, share: float | None, budget: int, plan: graphopt.Plan) -> Row:
    return {
        "kind": "cell",
        "model": subject.name,
        "share": "minimum" if share is None else share,
        "budget_bytes": budget,
        "minimum_bytes": plan.minimum_bytes,
        "eager_peak_bytes": subject.eager_peak_bytes,
        "held_bytes": subject.held_bytes,
        "resident_bytes": dict(plan.resident_bytes),
        "eager_repeats": subject.eager_repeats,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model-limit", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=1)
    args = parser.parse_args()
    deterministic()
    allocator = os.environ.get("PYTORCH_ALLOC_CONF", "")
    print(MARK + json.dumps({"kind": "about", **about(args.device), "allocator": allocator}), flush=True)

    def stop(*_: object) -> None:
        raise TimeLimit

    signal.signal(signal.SIGALRM, stop)
    for name in args.models:
        signal.setitimer(signal.ITIMER_REAL, args.model_limit)
        error: BaseException | None = None
        try:
            for row in run_model(name, torch.device(args.device), args.rounds, args.times):
                print(MARK + json.dumps(row), flush=True)
        except (Exception, TimeLimit) as raised:
            error = raised
            traceback.print_exc(limit=-4)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if error is not None:
            row = {"kind": "model", "model": name, "error": f"{type(error).__name__}: {error}"}
            print(MARK + json.dumps(row), flush=True)
            if "CUDA error" in str(error) or isinstance(error, TimeLimit):
                # the context may be lost, or something half done: the next model gets a new process
                sys.stdout.flush()
                os._exit(REPORTED)
        del error
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
