"""Optimizer state in a file: what a step takes, in bytes and time, beside the same step with its state in memory.

python -m benchmarks.optimizer_state [--json out.json]

A GPT-2 whose state outweighs its activations, AdamW: state in memory, in a file, and in a file with updates in the
backward; through links held to several speeds. Peaks are the allocator's over one step. Times are wall-clock medians of
steps that alternate with those of the step in memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import graphopt
from benchmarks.common import about, write_json
from graphopt.device.measure import peak_bytes
from graphopt.device.storages import tensors_in
from graphopt.kernels.streaming.state_file import StateFile
from graphopt.step.optimizer import state_elsewhere

ROUNDS = 9
WAYS: dict[str, dict[str, Any]] = {
    "in a file": {"offload_optimizer": "file"},
    "in a file, updates in the backward": {"offload_optimizer": "file", "update_in_backward": True},
}
RATES_BYTES_PER_SECOND = (0.0, 400e6, 100e6)


def build() -> nn.Module:
    """GPT-2 of four layers of width 256, some 5.5 million parameters; it returns its loss alone."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(n_layer=4, n_embd=256, n_head=4, vocab_size=8192, n_positions=128, use_cache=False, **rates)
    return GPT2LMHeadModel(config).train()


class Loss(nn.Module):
    """The model's own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build()

    def forward(self, words: torch.Tensor) -> Any:
        """A scalar, of [rows, length] words."""
        return self.model(input_ids=words, labels=words).loss


def step_of(**options: Any) -> graphopt.TrainStep:
    model = Loss()
    return graphopt.train_step(model, None, torch.optim.AdamW(model.parameters()), None, **options)


def measured_bytes(step: graphopt.TrainStep, words: torch.Tensor) -> int:
    """The allocator's peak of one step, with all that is there."""
    state = tensors_in(list(step.optimizer.state.values()))
    return peak_bytes(lambda: step(words), [*step.model.parameters(), *step.model.buffers(), *state, words], "cpu")


def planned(step: graphopt.TrainStep) -> dict[str, int]:
    """The peak of a step's plan, and the least budget that it names."""
    return {"planned_bytes": step.plan.peak_bytes, "least_bytes": step.plan.minimum_bytes}


def ratio(step: graphopt.TrainStep, usual: graphopt.TrainStep, words: torch.Tensor) -> float:
    """Wall-clock seconds of a step over those of the usual one, the median of alternating rounds."""

    def seconds(which: graphopt.TrainStep) -> float:
        start = time.perf_counter()
        which(words)
        return time.perf_counter() - start

    return statistics.median(seconds(step) / seconds(usual) for _ in range(ROUNDS))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    words = torch.randint(0, 8192, (4, 64))
    usual = step_of()
    usual(words)
    usual_bytes = measured_bytes(usual, words)
    cells: list[dict[str, Any]] = [{"way": "in memory", "measured_bytes": usual_bytes, **planned(usual)}]
    for way, options in WAYS.items():
        for rate in RATES_BYTES_PER_SECOND:
            with mock.patch.object(state_elsewhere, "StateFile", partial(StateFile, bytes_per_second=rate)):
                step = step_of(**options)
            step(words)
            cell = {"way": way, "link_bytes_per_second": rate, "measured_bytes": measured_bytes(step, words)}
            cells.append(cell | planned(step) | {"time_ratio": ratio(step, usual, words)})
    table = Table("state", "link", "measured", "of the usual", "planned", "least budget", "time")
    for cell in cells:
        link = cell.get("link_bytes_per_second")
        named = "" if link is None else f"{link / 1e6:.0f} MB/s" if link else "its own"
        sizes = [f"{cell[name] / 1e6:.1f} MB" for name in ("measured_bytes", "planned_bytes", "least_bytes")]
        figures = sizes[0], f"{cell['measured_bytes'] / usual_bytes:.0%}", *sizes[1:]
        table.add_row(cell["way"], named, *figures, f"{cell.get('time_ratio', 1.0):.2f}")
    Console().print(table)
    if given.json:
        write_json(given.json, {**about("cpu"), "cells": cells})


if __name__ == "__main__":
    main()
