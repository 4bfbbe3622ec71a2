"""Compiled plans against torch.compile: true peaks and times, at every peak that torch.compile reaches and below.

python -m benchmarks.compiled [model ...] [--ratios 0.1,0.5] [--shares 0.5,0.35] [--rounds 9] [--json out.json]

Of each model the ways are: eager; torch.compile; torch.compile with `activation_memory_budget` at each ratio; graphopt
through Inductor at each of their peaks, at shares of eager's peak and at its minimum; and graphopt with eager's kernels
at the shares. A model returns its loss alone. Peaks are the profiler's; times are processor seconds of a step on one
thread, medians of rounds in which all ways take turns, over eager's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils import _pytree

import graphopt
from benchmarks.common import LossModule, about, build_case, clock_of, write_json
from graphopt.base.units import format_bytes
from graphopt.device.measure import peak_bytes
from graphopt.device.storages import tensors_in

MODELS = ("gpt2", "llama", "bert", "vit", "resnet50", "unet", "gru")
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHARES = (1.0, 0.7, 0.5, 0.35, 0.25)
#: Peaks nearer than this are one.
_SAME = 0.01


@dataclass
class Way:
    """One way to run a model's step; `refused` says why it does not run."""

    model: str
    way: str
    budget_bytes: int = 0
    peak_bytes: int = 0
    first_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    refused: str = ""
    step: Callable[[], None] | None = None

    def ratio(self, other: Way) -> float:
        """Its median time over another's, such as eager's."""
        return statistics.median(self.seconds) / statistics.median(other.seconds)


def own_frame(model: nn.Module) -> Callable[..., Any]:
    """A call of the model in a code object of its own, for which Dynamo keeps what it compiles."""
    found: dict[str, Any] = {"model": model}
    exec(compile("def call(*args, **kwargs):\n    return model(*args, **kwargs)", f"<call {id(model)}>", "exec"), found)
    return found["call"]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Subject:
    """A model of the zoo on a device, with its batch so many times."""

    name: str
    device: torch.device
    times: int

    def made(self) -> tuple[LossModule, tuple[Any, ...], dict[str, Any]]:
        """The model, and its inputs."""

        def move(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return torch.cat([leaf] * self.times).to(self.device) if leaf.ndim else leaf.to(self.device)

        case = build_case(self.name)
        args, kwargs = _pytree.tree_map(move, (case.args, case.kwargs))
        return LossModule(case).to(self.device), args, kwargs


def measured(
    subject: Subject, way: str, wrap: Callable[[LossModule], Callable[..., Any]], budget_bytes: int = 0
) -> Way:
    """Compile one way, and measure the peak of a step."""
    made = Way(subject.name, way, budget_bytes)
    model, args, kwargs = subject.made()
    started = time.perf_counter()
    try:
        call = wrap(model)

        def step() -> None:
            for parameter in model.parameters():
                parameter.grad = None
            call(*args, **kwargs).backward()

        step()
    except graphopt.BudgetError as error:
        made.refused = str(error).splitlines()[0]
        return made
    except Exception as error:  # whatever a compiler has against a model is its row
        made.refused = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return made
    made.first_seconds = time.perf_counter() - started
    step()
    for parameter in model.parameters():
        parameter.grad = None
    resident = [*model.parameters(), *model.buffers(), *tensors_in((args, kwargs))]
    made.peak_bytes, made.step = peak_bytes(step, resident, subject.device), step
    return made


def torch_compiled(subject: Subject, ratio: float | None) -> Way:
    """torch.compile, with a ratio of activations to keep."""
    with torch._functorch.config.patch(activation_memory_budget=1.0 if ratio is None else ratio):
        way = "torch.compile" if ratio is None else f"torch.compile, ratio {ratio:g}"
        return measured(subject, way, lambda model: torch.compile(own_frame(model), dynamic=False))


def planned(subject: Subject, budget_bytes: int, compiler: Any) -> Way:
    """graphopt in a budget."""

    def wrap(model: LossModule) -> Callable[..., Any]:
        return graphopt.optimize(model, budget_bytes, compiler=compiler)

    return measured(subject, f"graphopt, {compiler}", wrap, budget_bytes)


def ways_of(
    subject: Subject, ratios: tuple[float, ...], shares: tuple[float, ...], tell: Callable[[Way], None]
) -> list[Way]:
    """Every way of a model, told of as it is compiled."""

    def all_ways() -> Iterator[Way]:
        eager = measured(subject, "eager", lambda model: model)
        yield eager
        theirs = []
        for ratio in (None, *ratios):
            theirs.append(torch_compiled(subject, ratio))
            yield theirs[-1]
        wanted = [way.peak_bytes for way in theirs if not way.refused]
        wanted += [int(share * eager.peak_bytes) for share in shares]
        for budget_bytes in distinct(wanted):
            yield planned(subject, budget_bytes, "inductor")
        for share in shares:
            yield planned(subject, int(share * eager.peak_bytes), "eager")

    found = []
    for way in all_ways():
        tell(way)
        found.append(way)
    return found


def distinct(wanted: list[int]) -> list[int]:
    """Budgets that differ, the largest first."""
    found: list[int] = []
    for budget_bytes in sorted(wanted, reverse=True):
        if not found or budget_bytes < found[-1] * (1 - _SAME):
            found.append(budget_bytes)
    return found


def take_times(ways: list[Way], rounds: int, now: Callable[[], float]) -> None:
    """All ways in turns, so that what else the machine does falls on all of them."""
    running = [way for way in ways if way.step is not None]
    for number in range(rounds):
        for way in running if number % 2 else reversed(running):
            assert way.step is not None
            started = now()
            way.step()
            way.seconds.append(now() - started)


def at_their_peaks(ways: list[Way]) -> dict[str, float]:
    """For each way of torch.compile: the time of graphopt's fastest through Inductor at no higher a peak, over its."""
    run = [way for way in ways if not way.refused]
    ours = [way for way in run if way.way == "graphopt, inductor"]
    found = {}
    for their in (way for way in run if way.way.startswith("torch.compile")):
        fitting = [way.ratio(their) for way in ours if way.peak_bytes <= their.peak_bytes]
        if fitting:
            found[their.way] = min(fitting)
    return found


def show(ways: list[Way]) -> Table:
    """The ways of one model."""
    eager = ways[0]
    right = ("budget", "peak", "of eager", "time / eager", "first step")
    beside = ", ".join(f"{way} {ratio:.2f}" for way, ratio in at_their_peaks(ways).items())
    caption = f"Time through Inductor at no higher a peak, over that of {beside}"
    table = Table("way", *right, title=eager.model, caption=caption)
    for way in ways:
        budget = format_bytes(way.budget_bytes) if way.budget_bytes else ""
        if way.refused:
            table.add_row(way.way, budget, way.refused[:60], "", "", "")
            continue
        share = f"{way.peak_bytes / eager.peak_bytes:.3f}"
        times = f"{way.ratio(eager):.3f}"
        table.add_row(way.way, budget, format_bytes(way.peak_bytes), share, times, f"{way.first_seconds:.0f} s")
    return table


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--ratios", type=_numbers, default=RATIOS)
    parser.add_argument("--shares", type=_numbers, default=SHARES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--times", type=int, default=1, help="batches of the zoo in one")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console, rows = Console(), []
    for name in options.models:
        subject = Subject(name, options.device, options.times)
        ways = ways_of(
            subject, options.ratios, options.shares, lambda way: console.log(way.model, way.way, way.refused)
        )
        take_times(ways, options.rounds, clock_of(options.device, 1))
        console.print(show(ways))
        rows += [{k: v for k, v in asdict(way).items() if k != "step"} for way in ways]
        write_json(options.json, {**about(options.device), "ways": rows})
    return 0


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
