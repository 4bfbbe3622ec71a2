"""The matrix of models × budgets on a GPU, in one go: does it fit, as predicted, with the very gradients?

python -m benchmarks.gpu.matrix [model ...] [--device cuda] [--limit 570] [--workers 4] [--times 8] [--json gpu.json]

Needs a checkout, torch and transformers; no network, nothing installed. Worker processes run
models one after the other and print a line of JSON for each cell; this process collects them,
writes the file after each, and starts a new worker behind a model that ended the old one.

Measured per cell: `torch.cuda.max_memory_allocated` over a step (`measured_bytes`) against the budget
and the prediction, bitwise equality with the captured graph and with eager, and at some budgets the
time over eager's. What libraries keep allocated for good (cuBLAS workspaces) is measured after a
warm-up and planned for as reserve (`held_bytes`). `requested_bytes` is the peak without the
allocator's rounding: where measured is far above it, blocks were larger than what was asked for.
The anchor models run alone and are timed too; the others run several at a time, since most of a
cell is tracing, on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# transformers and convolutions first: the time may run out
MODELS = """
    gpt2 bert llama llama_sdpa vit t5 resnet50 unet convnext swin lstm gru wav2vec2 densenet mobilenet channels_last
    residual_mlp mixture_of_experts ema_autoencoder in_place shared_and_frozen structured_outputs autocast by_hand
    graph_break
"""
TIMED_MODELS = "gpt2_anchor bert_anchor resnet50_anchor unet_anchor"

SHARES = (0.9, 0.7, 0.5, 0.4, 0.3)
WITHIN = 0.02
"""How far a prediction may be from what is measured."""

MARK = "CELL "
REPORTED = 3
"""A worker's exit code where it has said itself which model failed."""

#: Set before torch is imported, unless the caller did. Expandable segments split blocks to 512 bytes; without
#: them a block above 1 MiB keeps up to 1 MiB more than was asked for, and counts as allocated with it.
_ENVIRONMENT = {
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "CUBLAS_WORKSPACE_CONFIG": ":16:8",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

Row = dict[str, Any]


def is_good(row: Row) -> bool:
    """Inside its budget, predicted within 2 % and bitwise as captured; or refused below the minimum.

    A model whose eager step is not equal to itself bit by bit is not held to that.
    """
    if row["kind"] == "model":
        return not row["error"]
    if row["error"]:
        return bool(row["error"].startswith("BudgetError") and row["budget_bytes"] < row["minimum_bytes"])
    fits = row["measured_bytes"] <= row["budget_bytes"]
    near = abs(row["predicted_bytes"] / row["measured_bytes"] - 1) <= WITHIN
    same = not row["unlike_captured"] or not row["eager_repeats"]
    return bool(fits and near and same)


class Collector:
    """Runs workers and keeps what they print; the file is whole after every row."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.end = time.monotonic() + args.limit
        self.rows: list[Row] = []
        self.about: Row = {"times": args.times}
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen[str]] = set()

    @property
    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def run(self, models: list[str], workers: int, rounds: int) -> None:
        """Run the models in so many processes at a time; the allocator's figures are each process's own."""
        lists = [models[i::workers] for i in range(workers)]
        threads = [threading.Thread(target=self.run_list, args=(names, rounds)) for names in lists if names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def run_list(self, models: list[str], rounds: int) -> None:
        """Run models one after the other, in a new worker behind each that ended the old one."""
        left = list(models)
        while left and self.seconds_left > 5:
            code = self.run_worker(left, rounds)
            if code not in (0, REPORTED) and left and self.seconds_left > 5:
                self.failed(left.pop(0), f"worker ended with {code}")
        for name in left:
            self.failed(name, "no time left")

    def run_worker(self, left: list[str], rounds: int) -> int:
        """One worker over the models left, which it takes out as they end; its exit code."""
        worker = _start_worker(left, self.args, rounds)
        timer = threading.Timer(max(1.0, self.seconds_left), worker.kill)
        timer.start()
        self.running.add(worker)
        try:
            for row in _rows_of(worker):
                self.add(row)
                if row["kind"] == "model" and row["model"] in left:
                    left.remove(row["model"])
            return worker.wait()
        finally:
            timer.cancel()
            worker.kill()
            self.running.discard(worker)

    def stop(self, *_: object) -> None:
        """Let no worker outlive this process: end them now, and start none."""
        self.end = 0.0
        for worker in list(self.running):
            worker.kill()

    def failed(self, model: str, error: str) -> None:
        self.add({"kind": "model", "model": model, "error": error})

    def add(self, row: Row) -> None:
        """Judge a row, keep it, print it."""
        with self.lock:
            if row["kind"] == "about":
                self.about |= {key: value for key, value in row.items() if key != "kind"}
                return
            self.rows.append({**row, "good": is_good(row)})
            write_rows(self.args.json, self.rows, self.about)
            _say(self.rows[-1])


def write_rows(path: Path, rows: list[Row], about: Row) -> None:
    """Write all rows in one piece, with what they were measured on."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    partial.replace(path)


def _start_worker(models: list[str], args: argparse.Namespace, rounds: int) -> subprocess.Popen[str]:
    options = ["--device", args.device, "--model-limit", str(args.model_limit), "--rounds", str(rounds)]
    options += ["--times", str(args.times)]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu.worker", *options, *models]
    # the caller's environment wins, under the allocator variable's older name too
    defaults = dict(_ENVIRONMENT)
    if {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        defaults = {key: value for key, value in defaults.items() if "ALLOC_CONF" not in key}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**defaults, **os.environ})


def _rows_of(worker: subprocess.Popen[str]) -> Iterable[Row]:
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith(MARK):
            yield json.loads(line.removeprefix(MARK))
        else:
            print(line, end="", file=sys.stderr)


def _say(row: Row) -> None:
    """One line of a finished cell."""
    verdict = "ok " if row["good"] else "BAD"
    if row["kind"] == "model" or row["error"]:
        share = "" if row["kind"] == "model" else f"{row['share']} "
        text = (
            row["error"].splitlines()[0][:150]
            if row["error"]
            else f"done in {row['seconds']:.1f} s; eager repeats itself: {row['eager_repeats']}"
        )
        print(f"{verdict} {row['model']:20} {share}{text}", flush=True)
        return
    near = row["predicted_bytes"] / row["measured_bytes"]
    times = f" time ×{row['time_ratio']:.2f} (planned ×{1 + row['overhead']:.2f})" if row["time_ratio"] else ""
    same = f"captured {_same(row['unlike_captured'])}, eager {_same(row['unlike_eager'])}"
    print(
        f"{verdict} {row['model']:20} {row['share']!s:8} budget {row['budget_bytes']:,} measured "
        f"{row['measured_bytes']:,} predicted/measured {near:.4f}; = {same};{times}",
        flush=True,
    )


def _same(names: list[str]) -> str:
    return "yes" if not names else f"no ({names[0]}, {len(names)} in all)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names from tests/support/zoo (default: all)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=float, default=570, help="seconds for everything")
    parser.add_argument("--model-limit", type=float, default=120, help="seconds for one model")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) // 4), help="models at a time")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each timing; 0 for none")
    parser.add_argument("--times", type=int, default=1, help="how often a batch is repeated: a GPU's are larger")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="PATH")
    args = parser.parse_args()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    collector = Collector(args)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, collector.stop)
    # the large ones alone, and first: only these are timed
    chosen = args.models or [*TIMED_MODELS.split(), *MODELS.split()]
    collector.run([name for name in chosen if name in TIMED_MODELS.split()], 1, args.rounds)
    collector.run([name for name in chosen if name not in TIMED_MODELS.split()], args.workers, 0)
    cells = [row for row in collector.rows if row["kind"] == "cell"]
    bad = [row for row in collector.rows if not row["good"]]
    print(f"{len(cells)} cells, {len(bad)} rows not good: {sorted({row['model'] for row in bad})}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
