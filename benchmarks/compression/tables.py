"""The tables of benchmarks/compression/run.py, from the rows of its JSON file."""

from __future__ import annotations

import statistics
from typing import Any

from rich.table import Table

Rows = list[dict[str, Any]]


def speed_table(rows: Rows) -> Table:
    """Each way's step beside that of DDP in float32 in the same set-up, and its bytes beside what it says."""
    columns = ("ranks", "link", "way", "s a step", "× DDP fp32", "MB sent", "of what it says")
    table = Table(*columns, title="25.2 M parameters over rate-limited links")
    for world, rate in dict.fromkeys((row["world"], row["rate"]) for row in rows):
        here = [row for row in rows if (row["world"], row["rate"]) == (world, rate)]
        plain = next((row["seconds"] for row in here if row["way"] == "ddp"), None)
        for row in here:
            faster = f"{plain / row['seconds']:.2f}" if plain else ""
            stated = f"{row['sent_bytes'] / row['stated_bytes']:.4f}" if row["stated_bytes"] else ""
            figures = (f"{row['seconds']:.3f}", faster, f"{row['sent_bytes'] / 1e6:.2f}", stated)
            table.add_row(str(world), rate, row["way"], *figures)
        table.add_section()
    return table


def learning_table(rows: Rows) -> Table:
    """Each way's loss, mean over its seeds, beside that of DDP in float32 with the same seeds."""
    columns = ("ranks", "steps", "way", "seeds", "held-out loss", "over DDP fp32", "worst seed")
    table = Table(*columns, title="the next byte of the Python manual")
    for world, steps, way in dict.fromkeys((row["world"], row["steps"], row["way"]) for row in rows):
        losses = _losses(rows, world, steps, way)
        plain = _losses(rows, world, steps, "ddp")
        seeds = sorted(set(losses) & set(plain))
        excess = [losses[seed] / plain[seed] - 1 for seed in seeds]
        figures = (
            f"{statistics.mean(losses.values()):.4f}",
            *((f"{_mean_excess(losses, plain, seeds):+.2%}", f"{max(excess):+.2%}") if seeds else ("", "")),
        )
        table.add_row(str(world), str(steps), way, str(len(losses)), *figures)
    return table


def _losses(rows: Rows, world: int, steps: int, way: str) -> dict[int, float]:
    return {
        row["seed"]: row["held_out_loss"]
        for row in rows
        if (row["world"], row["steps"], row["way"]) == (world, steps, way)
    }


def _mean_excess(losses: dict[int, float], plain: dict[int, float], seeds: list[int]) -> float:
    return sum(losses[seed] for seed in seeds) / sum(plain[seed] for seed in seeds) - 1
