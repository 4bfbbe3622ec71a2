"""What the end of a training step costs, beside the best that is written with torch's own tools.

python -m benchmarks.step.train_step [--device cuda] [--parameters 50e6] [--rounds 9] [--threads 1] [--json out.json]

Unscale, check, norm, clip and AdamW, on GPT-2-like shapes (148 + 2 tensors), gradients in fp32 and, with fp32 masters,
in fp16. Every round runs every recipe once, in an order that turns; gradients are put back in between, outside
the time. A ratio is the time of the best eager recipe (by median) over a recipe's, round by round: the median
of the rounds, with quartiles. On one thread seconds are CPU seconds, which another load of the machine changes
less; on more they are real ones. Bytes are what ops read and write for each element of the gradient, counted
from their arguments; 24 of them are parameter and moments, read and written.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import clock_of, write_results
from benchmarks.step.tail_bytes import moved_bytes
from benchmarks.step.tail_recipes import EAGER, Training, tail
from graphopt import kernels


@dataclass(frozen=True)
class Contender:
    """One way to do a piece of work; the ratios are over the best of those that are `eager`."""

    name: str
    run: Callable[[], None]
    eager: bool
    bytes_per_element: float


@dataclass(frozen=True)
class Row:
    """The time of one contender and how many times the best eager one's fits."""

    setting: str
    contender: str
    eager: bool
    seconds: float
    speedup: float
    lower_quartile: float
    upper_quartile: float
    bytes_per_element: float


def shapes_of(parameters: float) -> list[tuple[int, ...]]:
    """GPT-2's 148 tensors and 2 of a head, of 12 layers as wide as it takes to have about `parameters` elements."""
    width = 16 * round((parameters / (12 * 12 + 50)) ** 0.5 / 16)
    block = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    vectors = [(3 * width,), (4 * width,), *[(width,)] * 6]
    return [(50 * width, width), (256, width), *(block + vectors) * 12, (width,), (width,), (2, width), (2,)]


def contenders_of(training: Training) -> list[Contender]:
    """Every eager recipe and ours with either kind of kernels."""

    def ours(kind: str) -> Callable[[], None]:
        def run() -> None:
            with kernels.use(kind):  # type: ignore[arg-type]
                tail(training)

        return run

    every = [(name, lambda recipe=recipe: recipe(training), "stock", True) for name, recipe in EAGER.items()]
    every += [(f"graphopt, {kind} kernels", ours(kind), kind, False) for kind in ("stock", "own")]
    return [Contender(name, run, eager, moved_bytes(run, kind) / training.elements) for name, run, kind, eager in every]


def compare(
    setting: str, contenders: list[Contender], prepare: Callable[[], None], rounds: int, clock: Callable[[], float]
) -> list[Row]:
    """Time all contenders in turn, `prepare` before each, after one run of each."""
    seconds: dict[str, list[float]] = {c.name: [] for c in contenders}
    for round_number in range(-1, rounds):
        shift = round_number % len(contenders)
        for contender in contenders[shift:] + contenders[:shift]:
            prepare()
            start = clock()
            contender.run()
            if round_number >= 0:
                seconds[contender.name].append(clock() - start)
    best = min((c.name for c in contenders if c.eager), key=lambda name: statistics.median(seconds[name]))
    return [row_of(setting, contender, seconds, best) for contender in contenders]


def row_of(setting: str, contender: Contender, seconds: Mapping[str, list[float]], best: str) -> Row:
    ratios = [b / own for b, own in zip(seconds[best], seconds[contender.name], strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    middle = statistics.median(seconds[contender.name])
    return Row(setting, contender.name, contender.eager, middle, median, lower, upper, contender.bytes_per_element)


def show(rows: list[Row]) -> Table:
    columns = ("gradients", "recipe", "seconds", "× the best eager", "quartiles", "bytes an element", "beside 24")
    table = Table(*columns, title="the end of a training step: unscale, check, norm, clip, AdamW")
    for row in rows:
        spread = f"{row.lower_quartile:.2f}–{row.upper_quartile:.2f}"
        counted = f"{row.bytes_per_element:.1f}", f"{row.bytes_per_element - 24:.1f}"
        table.add_row(row.setting, row.contender, f"{row.seconds:.4g}", f"{row.speedup:.2f}", spread, *counted)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parameters", type=float, help="default: 52e6, on a GPU 500e6")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = clock_of(args.device, args.threads)
    parameters = args.parameters or (52e6 if args.device == "cpu" else 500e6)
    rows: list[Row] = []
    for setting, half in {"fp32": None, "fp16": torch.float16}.items():
        training = Training(shapes_of(parameters), half, args.device)
        title = f"{setting}, {training.elements / 1e6:.1f} M in {len(training.shapes)} tensors"
        rows += compare(title, contenders_of(training), training.refresh, args.rounds, clock)
        write_results(args.json, args.device, [asdict(row) for row in rows])
        del training
    Console(width=None if sys.stdout.isatty() else 170).print(show(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
