"""What watching costs: a step with the watch over it against the same step without, and the counter of allocations.

python -m benchmarks.step.watching [--rounds 21] [--json out.json]

The watch is taken from one model and given back to it, in alternating rounds: two copies of a model differ by more than
the watch costs, as their memory lies elsewhere. How much two equal halves of the rounds without it differ is shown too.
The counter stands in front of the allocator for all of a process's life: it is compared between processes, one with it
and one without, that take turns. Times are the process's own (one thread); a ratio is with over without.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import optimizer

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


def make_step(shape: tuple[int, int, int], optimized: bool = True) -> tuple[Callable[[], None], nn.Module]:
    """A training step of a plain stack of layers, and the model."""
    count, width, rows = shape
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(count)]
    model, x = nn.Sequential(*layers), torch.randn(rows, width)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    if optimized:
        graphopt.optimize(model, "1GiB", cost_model="roofline")

    def step() -> None:
        sgd.zero_grad()
        model(x).square().mean().backward()
        sgd.step()

    for _ in range(8):
        step()
    return step, model


@contextmanager
def unwatched(model: nn.Module) -> Iterator[None]:
    """No watch over the model's steps, and nothing that tells it of updates."""
    loop = model.graphopt.session.loop  # type: ignore[union-attr]
    hooks = [optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks]
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(loop, "watch", None))
        stack.enter_context(mock.patch.object(run_loop, "watch_of", lambda *_: None))
        for each in hooks:
            stack.enter_context(mock.patch.dict(each, clear=True))
        yield


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


def compare_watch(name: str, rounds: int) -> list[Cost]:
    """The watch, in one process and over one model; and the rounds without it against each other."""
    step, model = make_step(SHAPES[name])
    repeats = max(int(0.1 / seconds_of(step, 3)), 3)
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * rounds):
        for watched in (False, True) if number % 2 == 0 else (True, False):
            with nullcontext() if watched else unwatched(model):
                times[watched].append(seconds_of(step, repeats))
    halves = times[False][::2], times[False][1::2]
    return [ratio_of(name, "watch", times[False], times[True]), ratio_of(name, "nothing", *halves)]


def compare_counter(name: str, rounds: int) -> list[Cost]:
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
    return [ratio_of(name, "counter", *times)]


def child(name: str, kind: str) -> None:
    """Answer each line with the seconds of a step in eager."""
    from graphopt.device.cpu_counter import cpu_counter

    torch.set_num_threads(1)
    if kind == "with":
        assert cpu_counter() is not None
    step, _ = make_step(SHAPES[name], optimized=False)
    repeats = max(int(0.3 / seconds_of(step, 3)), 3)
    for _ in sys.stdin:
        print(seconds_of(step, repeats), flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(*options.child)
        return 0
    torch.set_num_threads(1)
    costs = [cost for name in SHAPES for of in (compare_watch, compare_counter) for cost in of(name, options.rounds)]
    table = Table("model", "what", "a step without", "with / without", "quartiles")
    for cost in costs:
        quartiles = f"{cost.lower_quartile:.4f} to {cost.upper_quartile:.4f}"
        table.add_row(cost.model, cost.what, f"{cost.without_seconds * 1e3:.2f} ms", f"{cost.ratio:.4f}", quartiles)
    Console().print(table)
    write_json(options.json, {**about("cpu"), "costs": [asdict(cost) for cost in costs]})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
