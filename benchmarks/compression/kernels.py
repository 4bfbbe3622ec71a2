"""What compressing 100 MB of gradients costs: our kernels beside the same work in plain torch ops.

A round runs every contender once, in an order that turns. A ratio is the time of a plain formulation over that of our
kernel in the same round: the median of the rounds, with quartiles. On one thread seconds are CPU seconds, which
another load of the machine changes less; on more they are real ones. Gradients are 24 matrices of 1024 × 1024, in
buckets of 25 MiB; a plain formulation gets each bucket as the one flat tensor that a DDP hook would get.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import clock_of, write_results
from benchmarks.compression.kernels_quantize import quantizing
from benchmarks.compression.kernels_rows import Comparison, Gradients
from benchmarks.compression.kernels_sparsify import sparsifying
from graphopt import kernels

#: What gives the rows of a kind of compression.
ROWS: Sequence[Callable[[Gradients], list[Comparison]]] = (quantizing, sparsifying)


@dataclass(frozen=True)
class Row:
    """Median seconds of one contender, and how many times as long as our own kernels it takes."""

    work: str
    contender: str
    seconds: float
    ratio: float
    lower_quartile: float
    upper_quartile: float


def compare(comparison: Comparison, rounds: int, clock: Callable[[], float]) -> list[Row]:
    """Time our kernels, the stock ones and each plain formulation in turn, after one run of each."""
    contenders = {f"graphopt, {kind} kernels": _with(kind, comparison.ours) for kind in ("own", "stock")}
    ours = next(iter(contenders))
    contenders |= comparison.plain
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for round_number in range(-1, rounds):
        shift = round_number % len(names)
        for name in names[shift:] + names[:shift]:
            start = clock()
            contenders[name]()
            if round_number >= 0:
                seconds[name].append(clock() - start)
    return [_row(comparison.work, name, seconds[name], seconds[ours]) for name in names]


def _with(kind: str, run: Callable[[], object]) -> Callable[[], object]:
    def chosen() -> object:
        with kernels.use(kind):  # type: ignore[arg-type]
            return run()

    return chosen


def _row(work: str, name: str, seconds: list[float], ours: list[float]) -> Row:
    ratios = [mine / own for mine, own in zip(seconds, ours, strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return Row(work, name, statistics.median(seconds), median, lower, upper)


def show(rows: list[Row]) -> Table:
    table = Table(
        "work", "contender", "milliseconds", "× ours", "quartiles", title="compression of 100 MB of gradients"
    )
    for row in rows:
        spread = f"{row.lower_quartile:.1f}–{row.upper_quartile:.1f}"
        table.add_row(row.work, row.contender, f"{row.seconds * 1e3:.1f}", f"{row.ratio:.1f}", spread)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = clock_of(args.device, args.threads)
    rows: list[Row] = []
    for rows_of in ROWS:
        with torch.device(args.device):
            comparisons = rows_of(Gradients())
        for comparison in comparisons:
            rows += compare(comparison, args.rounds, clock)
            write_results(args.json, args.device, [asdict(row) for row in rows])
    Console(width=None if sys.stdout.isatty() else 140).print(show(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
