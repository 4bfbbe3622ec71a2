"""Case studies: what each technique does to memory, time and quality, on images, text and series.

python -m benchmarks.studies images [--seeds 3] [--small] [--models resnet] [--variants plain "clip norm 1" ...]
python -m benchmarks.studies text | series
python -m benchmarks.studies basics      bytes a parameter, and where accumulation changes a gradient
python -m benchmarks.studies show        docs/studies.md's tables and plots, from the results

A study trains each of its models in each way with every seed, and writes one row a way to its JSON file, in place
of the row of the same name. Peaks are measured from outside; seconds are the processor's, beside those of the plain
step in alternating rounds. Two ranks are two processes joined by gloo. `--small` is a few steps of a few ways, to
see that all of it runs, and is written nowhere without --json.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import about, write_json
from benchmarks.studies.ablation import ablation, as_json
from benchmarks.studies.basics import basics
from benchmarks.studies.page import show
from benchmarks.studies.results import RESULTS, load, path_of
from benchmarks.studies.subjects import STUDIES

SMALL_STEPS = 4
SMALL_VARIANTS = ("a loop without graphopt", "plain", "checkpoints, 50 %", "accumulate 4", "fp16, dynamic from 2²⁴")


def add(path: Path | None, found: dict[str, Any], row: dict[str, Any]) -> None:
    """Put a row in place of the one of the same model and variant."""
    key = row["model"], row["variant"]
    rows = [old for old in found.get("rows", []) if (old["model"], old["variant"]) != key]
    found["rows"] = [*rows, row]
    write_json(path, found)


def where() -> dict[str, str]:
    """When, on what, and with what."""
    machine = f"{platform.machine()}, one thread a process, on a machine that others used too"
    return {**about("cpu"), "machine": machine, "python": platform.python_version()}


def run(args: argparse.Namespace) -> None:
    path = args.json or (None if args.small else path_of(args.part))
    if args.part == "basics":
        write_json(path, {**where(), **basics()})
        return
    found = (load(path) if path and path.exists() else {}) | where() | {"study": args.part, "seeds": args.seeds}
    steps = SMALL_STEPS if args.small else None
    variants = args.variants or (SMALL_VARIANTS if args.small else ())
    for model in args.models or STUDIES[args.part]:
        for row in ablation(model, range(args.seeds), steps, variants):
            qualities = " ".join(f"{quality:.4f}" for quality in row.qualities)
            figures = f"{row.peak_bytes:,} bytes, {row.time_ratio:.2f} × time, quality {qualities}"
            skipped = [len(steps) for steps in row.skipped]
            print(f"{model}, {row.variant}: {figures}, skipped {skipped}, sent {row.sent_bytes:,}", flush=True)
            add(path, found, as_json(row))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*STUDIES, "basics", "show"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--variants", nargs="+")
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.part == "show":
        show(RESULTS)
    else:
        run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
