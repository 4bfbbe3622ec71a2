"""What watching costs: a step with the watch over it against the same step without, and the counter of allocations.

python -m benchmarks.step.watching [--rounds 9] [--json out.json]

The watch is compared in one process, on two copies of a model, in alternating rounds. The counter stands in front of
the allocator for all of a process's life: it is compared between processes, one with it and one without, that take
turns. Times are the process's own (one thread); a ratio is with over without.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import graphopt
from benchmarks.common import about, write_json
from graphopt.run.calls import loop as run_loop

#: (blocks, width, rows): few large operators, many small ones, many parameters.
SHAPES = {"large": (4, 512, 256), "small operators": (12, 64, 64), "many parameters": (200, 32, 64)}


@dataclass(frozen=True)
class Cost:
    """Medians over rounds, and quartiles of the ratio; seconds of one step."""

    model: str
    what: str
    without_seconds: float
    ratio: float
    lower_quartile: float
    upper_quartile: float


def make_step(shape: tuple[int, int, int], watched: bool, optimized: bool = True) -> Callable[[], None]:
    """A training step of a plain stack of layers."""
    count, width, rows = shape
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(count)]
    model, x = nn.Sequential(*layers), torch.randn(rows, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    if optimized:
        graphopt.optimize(model, "1GiB", cost_model="roofline")

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    unwatched = mock.patch.object(run_loop, "watch_of", lambda *_: None)
    with mock.patch.object(run_loop, "watch_of", run_loop.watch_of) if watched else unwatched:
        step()
    if optimized and not watched:  # the loop asks for a watch at each step
        model.graphopt.session.loop.begins = _never_watched(model.graphopt.session.loop)  # type: ignore[union-attr]
    step()
    return step


def _never_watched(loop: run_loop.Loop) -> Callable[..., object]:
    begins = type(loop).begins

    def without(*args: object, **kwargs: object) -> object:
        with mock.patch.object(run_loop, "watch_of", lambda *_: None):
            return begins(loop, *args, **kwargs)  # type: ignore[arg-type]

    return without


def seconds_of(step: Callable[[], None], repeats: int) -> float:
    """Processor seconds of one step."""
    start = time.process_time()
    for _ in range(repeats):
        step()
    return (time.process_time() - start) / repeats


def ratio_of(name: str, what: str, without: list[float], with_: list[float]) -> Cost:
    """The ratios of rounds."""
    ratios = [b / a for a, b in zip(without, with_, strict=True)]
    lower, middle, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return Cost(name, what, statistics.median(without), middle, lower, upper)


def compare_watch(name: str, rounds: int) -> Cost:
    """The watch, in one process."""
    steps = [make_step(SHAPES[name], watched) for watched in (False, True)]
    repeats = max(int(0.3 / seconds_of(steps[0], 3)), 3)
    times: tuple[list[float], list[float]] = ([], [])
    for round_number in range(rounds):
        for which in (0, 1) if round_number % 2 == 0 else (1, 0):
            times[which].append(seconds_of(steps[which], repeats))
    return ratio_of(name, "watch", *times)


def compare_counter(name: str, rounds: int) -> Cost:
    """The counter of allocations, in processes that take turns."""
    command = [sys.executable, "-m", "benchmarks.step.watching", "--child", name]
    processes = [
        subprocess.Popen([*command, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for kind in ("without", "with")
    ]
    times: tuple[list[float], list[float]] = ([], [])
    for round_number in range(rounds):
        for which in (0, 1) if round_number % 2 == 0 else (1, 0):
            process = processes[which]
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            times[which].append(float(process.stdout.readline()))
    for process in processes:
        process.communicate()
    return ratio_of(name, "counter", *times)


def child(name: str, kind: str) -> None:
    """Answer each line with the seconds of a step in eager."""
    from graphopt.device.cpu_counter import cpu_counter

    torch.set_num_threads(1)
    if kind == "with":
        assert cpu_counter() is not None
    step = make_step(SHAPES[name], watched=False, optimized=False)
    repeats = max(int(0.3 / seconds_of(step, 3)), 3)
    for _ in sys.stdin:
        print(seconds_of(step, repeats), flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(*options.child)
        return 0
    torch.set_num_threads(1)
    costs = [compare(name, options.rounds) for name in SHAPES for compare in (compare_watch, compare_counter)]
    table = Table("model", "what", "a step without", "with / without", "quartiles")
    for cost in costs:
        quartiles = f"{cost.lower_quartile:.4f} to {cost.upper_quartile:.4f}"
        table.add_row(cost.model, cost.what, f"{cost.without_seconds * 1e3:.2f} ms", f"{cost.ratio:.4f}", quartiles)
    Console().print(table)
    write_json(options.json, {**about("cpu"), "costs": [asdict(cost) for cost in costs]})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
