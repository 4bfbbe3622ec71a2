"""What a step costs the processor beside its kernels: tiny models, of which eager's own time is mostly dispatch.

python -m benchmarks.step.host_time [model ...] [--rounds 15] [--json out.json]

Four ways of one model take turns in one process: eager, `optimize` with nothing recomputed, `optimize` at its minimum,
and a loop of eager's with its optimizer against `train_step`. Times are the process's own, on one thread; a ratio is
the median over rounds of one way's time over eager's in the same round. `nodes` are calls in the emitted graphs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import graphopt
from benchmarks.common import UNLIMITED_BYTES, about, write_json
from benchmarks.step.tiny_models import TINY, Tiny
from graphopt.device.measure import collected_garbage

#: Runs before anything is timed: capture, gradients that are watched once, the first measured steps.
WARM_UP = 6
ROUND_SECONDS = 0.15


@dataclass(frozen=True)
class Row:
    """Processor seconds of a step and of eager's, and their ratio over rounds; `nodes` that the step's graphs call."""

    model: str
    way: str
    nodes: int
    seconds: float
    eager_seconds: float
    ratio: float
    lower_quartile: float
    upper_quartile: float


def eager_step(tiny: Tiny) -> Callable[[], None]:
    """A forward and a backward of eager's."""
    model, batch = tiny.build()
    return lambda: step_of(model, batch)


def step_of(model: nn.Module, batch: tuple[Tensor, ...]) -> None:
    """Gradients dropped, forward, backward."""
    model.zero_grad(set_to_none=True)
    model(*batch).backward()


def optimized_step(tiny: Tiny, *, at_minimum: bool) -> tuple[Callable[[], None], int]:
    """The same inside of a budget, and the calls in its graphs."""
    model, batch = tiny.build()
    budget_bytes = UNLIMITED_BYTES
    if at_minimum:
        graphopt.optimize(model, UNLIMITED_BYTES, example_inputs=batch)
        budget_bytes = model.graphopt.plan.minimum_bytes  # type: ignore[union-attr]
        model.graphopt.restore()  # type: ignore[union-attr]
    graphopt.optimize(model, budget_bytes, example_inputs=batch)

    def step() -> None:
        step_of(model, batch)

    for _ in range(WARM_UP):
        step()
    graphs = [each.module for each in model.graphopt.session.runnables]  # type: ignore[union-attr]
    return step, sum(len(calls(graph)) for graph in graphs)


def calls(graph: torch.fx.GraphModule) -> list[torch.fx.Node]:
    """The nodes that compute or look."""
    return [node for node in graph.graph.nodes if node.op == "call_function"]


def eager_loop(tiny: Tiny) -> Callable[[], None]:
    """A step of eager's with its optimizer."""
    model, batch = tiny.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(*batch).backward()
        optimizer.step()

    return step


def train_step(tiny: Tiny) -> Callable[[], None]:
    """The same as one graph."""
    model, batch = tiny.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    step = graphopt.train_step(model, None, optimizer, UNLIMITED_BYTES, example_inputs=batch)
    return lambda: step(*batch) and None


def seconds_of(step: Callable[[], None], repeats: int) -> float:
    """Processor seconds of one step."""
    start = time.process_time()
    for _ in range(repeats):
        step()
    return (time.process_time() - start) / repeats


def in_turns(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each round; who goes first changes."""
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    repeats = max(int(ROUND_SECONDS / seconds_of(next(iter(steps.values())), 10)), 3)
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    with collected_garbage():
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(seconds_of(steps[name], repeats))
    return times


def compare(model: str, way: str, nodes: int, mine: list[float], eagers: list[float]) -> Row:
    """One way against eager's, round by round."""
    ratios = [a / b for a, b in zip(mine, eagers, strict=True)]
    lower, middle, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return Row(model, way, nodes, statistics.median(mine), statistics.median(eagers), middle, lower, upper)


def rows_of(name: str, rounds: int) -> list[Row]:
    """All ways of one model."""
    torch._dynamo.reset()
    tiny = TINY[name]
    whole, whole_nodes = optimized_step(tiny, at_minimum=False)
    least, least_nodes = optimized_step(tiny, at_minimum=True)
    steps = {"eager": eager_step(tiny), "nothing recomputed": whole, "minimum": least}
    steps |= {"eager's loop": eager_loop(tiny), "train_step": train_step(tiny)}
    times = in_turns(steps, rounds)
    return [
        compare(name, "nothing recomputed", whole_nodes, times["nothing recomputed"], times["eager"]),
        compare(name, "minimum", least_nodes, times["minimum"], times["eager"]),
        compare(name, "train_step", 0, times["train_step"], times["eager's loop"]),
    ]


def show(rows: list[Row]) -> Table:
    table = Table(
        "model", "way", "calls", "eager µs", "µs", "ratio", "quartiles", title="processor time of a tiny step"
    )
    for row in rows:
        quartiles = f"{row.lower_quartile:.3f}–{row.upper_quartile:.3f}"
        figures = (f"{row.eager_seconds * 1e6:.0f}", f"{row.seconds * 1e6:.0f}", f"{row.ratio:.3f}", quartiles)
        table.add_row(row.model, row.way, str(row.nodes or ""), *figures)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(TINY))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for model in args.models:
        rows += rows_of(model, args.rounds)
        write_json(args.json, {**about("cpu"), "rows": [asdict(each) for each in rows]})
    Console(width=None if sys.stdout.isatty() else 120).print(show(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
