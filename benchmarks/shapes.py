"""Shapes that change: what a new one costs, and an epoch of transformers' Trainer with dynamic padding, from the start.

python -m benchmarks.shapes [--json out.json]

The run: 30 lengths and 5 batch sizes through one optimized GPT-2 of four layers, in random order; what a call costs
beside eager's, in processor time on one thread. The epoch: the same model under the Trainer, 7 lengths, 40 steps, in
processes of their own: eager, graphopt with nothing measured or planned before, and once more. All that graphopt does
is in its time; what both import is in neither.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import graphopt
from benchmarks.common import about, write_json

LENGTHS, ROWS = range(16, 136, 4), (2, 3, 4, 6, 8)
#: Of eager's peak at the largest shape.
SHARE = 0.6
_EPOCH_LENGTHS = (24, 40, 56, 72, 88, 104, 120)


def build() -> nn.Module:
    """GPT-2 of four layers, with dropout; it returns its loss alone."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=4, n_embd=128, n_head=4, vocab_size=512, n_positions=160)
    return GPT2LMHeadModel(config).train()


def batch(rows: int, length: int) -> dict[str, Tensor]:
    """Words, which are their own labels."""
    words = torch.randint(0, 512, (rows, length))
    return {"input_ids": words, "labels": words.clone()}


def step_seconds(model: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Processor time of a forward and a backward from no gradients."""
    model.zero_grad()
    torch.manual_seed(1)
    started = time.process_time()
    model(**inputs).loss.backward()
    return time.process_time() - started


def resident_bytes() -> int:
    """What the process takes of the machine's memory (Linux)."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run_of_shapes() -> dict[str, Any]:
    """What calls cost beside eager's: those at new shapes, and those at shapes that came before."""
    from graphopt.device.measure import peak_bytes

    model = build()
    eager = copy.deepcopy(model)
    largest = batch(max(ROWS), max(LENGTHS))
    there = [*eager.parameters(), *eager.buffers(), *largest.values()]
    budget_bytes = int(SHARE * peak_bytes(lambda: eager(**largest).loss.backward(), there, "cpu"))
    graphopt.optimize(model, budget_bytes)
    shapes = [(rows, length) for rows in ROWS for length in LENGTHS]
    random.Random(0).shuffle(shapes)
    new, equal, over, held = [], True, 0, []
    for shape in shapes:
        inputs = batch(*shape)
        new.append(step_seconds(model, inputs) - step_seconds(eager, inputs))
        pairs = zip(model.parameters(), eager.parameters(), strict=True)
        equal = equal and all(torch.equal(a.grad, b.grad) for a, b in pairs)  # type: ignore[arg-type]
        over += model.graphopt.history[-1].measured_bytes > budget_bytes  # type: ignore[union-attr, index]
        held.append(resident_bytes())
    seen = []
    for shape in shapes[-40:]:
        inputs = batch(*shape)
        pairs_of = [(step_seconds(model, inputs), step_seconds(eager, inputs)) for _ in range(3)]
        seen.append(min(ours for ours, _ in pairs_of) - min(theirs for _, theirs in pairs_of))
    return {
        "shapes": len(shapes),
        "captures": len(model.graphopt.session.graphs),  # type: ignore[union-attr, arg-type]
        "budget_bytes": budget_bytes,
        "steps_over_budget": over,
        "gradients_are_eagers": equal,
        "new_shape_seconds_median": statistics.median(new[2:]),
        "new_shape_seconds_most": max(new[2:]),
        "first_two_seconds": new[:2],
        "seen_shape_seconds_median": statistics.median(seen),
        "held_bytes_a_shape_in_the_second_half": (held[-1] - held[len(held) // 2]) / (len(held) - len(held) // 2),
    }


def epoch(optimized: bool) -> float:
    """Processor time of an epoch of the Trainer, with all that graphopt does."""
    import transformers

    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    model = build()
    generator = random.Random(1)
    lengths = [generator.choice(_EPOCH_LENGTHS) for _ in range(40)]
    data = [{"input_ids": [i % 512 for i in range(length)]} for length in lengths for _ in range(4)]

    def collate(items: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        words = torch.tensor([item["input_ids"] for item in items])
        return {"input_ids": words, "labels": words.clone()}

    with tempfile.TemporaryDirectory() as folder:
        quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
        sequential = {"train_sampling_strategy": "sequential"}
        arguments = transformers.TrainingArguments(
            folder, num_train_epochs=1, per_device_train_batch_size=4, use_cpu=True, **quiet, **sequential
        )
        started = time.process_time()
        if optimized:
            graphopt.optimize(model, "64MiB")
        transformers.Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate).train()
        return time.process_time() - started


def epochs() -> dict[str, float]:
    """Seconds of an epoch by way, each in a process of its own."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for way in ("eager", "graphopt, first start", "graphopt, second start"):
            environment = {**os.environ, "GRAPHOPT_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
            call = f"from benchmarks.shapes import epoch; print('seconds', epoch({way != 'eager'}))"
            done = subprocess.run([sys.executable, "-W", "ignore", "-c", call], env=environment, capture_output=True)
            found[way] = float(done.stdout.decode().split("seconds")[1])
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {**about("cpu"), "epoch_seconds": epochs(), "run": run_of_shapes()}
    table = Table("what", "value")
    for name, seconds in results["epoch_seconds"].items():
        table.add_row(f"epoch, {name}", f"{seconds:.2f} s")
    for name, value in results["run"].items():
        table.add_row(name.replace("_", " "), json.dumps(value))
    Console().print(table)
    if given.json:
        write_json(given.json, results)


if __name__ == "__main__":
    main()
