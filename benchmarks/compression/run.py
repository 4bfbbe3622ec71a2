"""Compression over slow networks: bytes on the wire, seconds of a step, and what is learned, beside torch's own hooks.

python -m benchmarks.compression.run speed [--worlds 2 4] [--rates 100mbit 1gbit] [--ways "ddp" "ddp top-k 1 %" ...]
python -m benchmarks.compression.run learning [--seeds 1 2 3] [--steps 3000] [--worlds 2] [--ways ...]
python -m benchmarks.compression.run show

Ranks are processes in network namespaces, joined by links of 100 Mbit/s or 1 Gbit/s (benchmarks/compression/network.py;
needs root). `speed` is a step of 25.2 M parameters (24 matrices of 1024 × 1024, 4 rows a rank): forward, backward,
exchange, SGD; the median over steps of the slowest rank's seconds, and the bytes that rank 0 sent, counted at its
interface, beside what the method says. `learning` trains a small language model on the Python manual with SGD and
momentum; the loss is that on held-out text. Each run adds its rows to the JSON file and replaces those of the same
set-up; `show` prints the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common import write_json
from benchmarks.compression.learning import Learned, learn
from benchmarks.compression.network import BITS_PER_SECOND, missing
from benchmarks.compression.speed import Speed, measure_speed
from benchmarks.compression.tables import learning_table, speed_table
from benchmarks.compression.ways import LEARNING_WAYS, SPEED_WAYS, WAYS

RESULTS = Path(__file__).parents[1] / "results" / "compression_cpu.json"
#: What makes two rows of a table the same measurement.
KEYS = {"speed": ("way", "world", "rate"), "learning": ("way", "world", "seed", "steps")}


def measured(args: argparse.Namespace) -> Iterator[Speed | Learned]:
    """The rows that the arguments ask for, one after the other; what fails is said and left out."""
    for world in args.worlds:
        for second in args.rates if args.part == "speed" else args.seeds:
            for way in args.ways or (SPEED_WAYS if args.part == "speed" else LEARNING_WAYS):
                try:
                    if args.part == "speed":
                        yield measure_speed(way, world, second)
                    else:
                        yield learn(way, world, second, args.steps)
                except AssertionError as error:  # of a rank
                    print(f"{way}, {world} ranks: {error}", file=sys.stderr)


def add(path: Path, part: str, row: Speed | Learned) -> dict[str, Any]:
    """Put a row in the file in place of the one of the same set-up, with when and where it was measured."""
    found = json.loads(path.read_text()) if path.exists() else {}
    new = {
        **asdict(row),
        "measured": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "load": os.getloadavg()[0],
    }
    same = [new[key] for key in KEYS[part]]
    found["machine"] = (
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, torch {torch.__version__}"
    )
    found[part] = [*(old for old in found.get(part, []) if [old[key] for key in KEYS[part]] != same), new]
    write_json(path, found)
    return found


def show(path: Path) -> None:
    found = json.loads(path.read_text())
    console = Console(width=None if sys.stdout.isatty() else 150)
    if "speed" in found:
        console.print(speed_table(found["speed"]))
    if "learning" in found:
        console.print(learning_table(found["learning"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "learning", "show"))
    parser.add_argument("--worlds", type=int, nargs="+", default=[2])
    parser.add_argument("--rates", nargs="+", default=list(BITS_PER_SECOND), choices=list(BITS_PER_SECOND))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--ways", nargs="+", choices=WAYS)
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="PATH")
    args = parser.parse_args()
    if args.part == "speed" and missing():
        print(missing(), file=sys.stderr)
        return 1
    if args.part != "show":
        for row in measured(args):
            print(row.way, row.world, row, file=sys.stderr)
            add(args.json, args.part, row)
    show(args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
