"""Compressed gradients of parameters that are shared out over ranks, behind slow links.

python -m benchmarks.sharded_compressed [model ...] [--world 2] [--rate 100mbit] [--rounds 7] [--json out.json]

All ways train the same model with AdamW on the same batches, without a limit, so that each gathers a parameter once a
step. Peaks are of the rank that takes the most; seconds are of the slowest rank, the median over rounds in which the
ways alternate, in one set of processes. "Difference" is the largest between parameters after
all steps, from uncompressed ones; "of fully_shard" is of the first way.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console

import graphopt
from benchmarks.common import about, write_json
from benchmarks.compression.network import run_ranks_over_network
from benchmarks.sharded import Cell, Way, by_graphopt, measured_peak, seconds_of, table_of
from benchmarks.sharded_models import MODELS
from tests.support.ranks import run_ranks

METHODS = (None, graphopt.HalfCast(torch.bfloat16), graphopt.EightBit(), graphopt.QSGD(8), graphopt.QSGD(4))


def run_model(name: str, rounds: int) -> list[Cell]:
    """All ways on one model, on this rank; the cells are those of all ranks together."""
    warnings.filterwarnings("ignore")
    case, ways = MODELS[name], list[Way]()
    for stage in (True, "gradients"):
        for method in METHODS:
            what = f"shard={stage!r}, {method or 'as they are'}"
            ways.append(by_graphopt(case, None, what, shard=stage, compress=method))
    return cells_of(name, ways, rounds)


def cells_of(name: str, ways: list[Way], rounds: int) -> list[Cell]:
    """What ways to train one model take, on all ranks together; parameters are compared with those of the first."""
    case, world = MODELS[name], dist.get_world_size()
    peaks = [measured_peak(way, case) for way in ways]
    seconds = seconds_of(ways, case, rounds)
    reference = ways[0].parameters()
    cells = []
    for way, peak, each in zip(ways, peaks, seconds, strict=True):
        apart = max(float((a - b).abs().max()) for a, b in zip(way.parameters(), reference, strict=True))
        cells.append(Cell(name, world, way.name, None, way.planned_bytes, peak, each, apart))
    return cells


def main(arguments: list[str], run: Callable[[str, int], list[Cell]] = run_model, about_it: str | None = None) -> int:
    """Run and print."""
    what, raw = about_it or __doc__, argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=what, formatter_class=raw)
    parser.add_argument("models", nargs="*", default=["wide blocks"], choices=[*MODELS, []])
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--rate", default="100mbit", help="unlimited, 1gbit or 100mbit: of each rank's link")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    cells: list[Cell] = []
    for name in options.models:
        if options.rate == "unlimited":
            cells += run_ranks(options.world, run, name, options.rounds, timeout=1200)[0]
        else:
            cells += run_ranks_over_network(options.world, options.rate, run, name, options.rounds, timeout=1200)[0]
        Console(width=160).print(table_of([cell for cell in cells if cell.model == name]))
        write_json(options.json, {**about("cpu"), "rate": options.rate, "cells": [asdict(cell) for cell in cells]})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
