"""A picture for each study: losses over steps, memory against time, and the loss scale over steps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
CURVES = ("plain", "accumulate 4", "clip value 0.001", "fp16, dynamic from 2²⁴", "batch × 4", "TopK 5 %")
COLOURS = {
    "plain": "#000000",
    "memory": "#0072b2",
    "clip": "#009e73",
    "loss scale": "#d55e00",
    "together": "#cc79a7",
    "batch": "#7f7f7f",
    "SGD": "#b8860b",
    "ranks": "#56b4e9",
}


def draw(rows: Rows, path: Path) -> None:
    """Write the picture of one model's rows, the same bytes for the same rows."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "studies", "font.size": 8})
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    losses, memory, scales = figure.subplots(1, 3)
    _losses(losses, rows)
    _memory(memory, rows)
    _scales(scales, rows)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _losses(axes: Axes, rows: Rows) -> None:
    for row in rows:
        if row["variant"] in CURVES and all(None not in curve for curve in row["losses"]):
            means = [statistics.mean(points) for points in zip(*row["losses"], strict=True)]
            axes.plot(_places(means, row["steps"]), means, label=row["variant"], linewidth=1)
    axes.set(xlabel="share of the training", ylabel="training loss, mean of the seeds", yscale="log")
    axes.legend(frameon=False)


def _memory(axes: Axes, rows: Rows) -> None:
    for group, colour in COLOURS.items():
        chosen = [row for row in rows if row["group"] == group and row["variant"] != "a loop without graphopt"]
        if chosen:
            peaks = [row["peak_bytes"] / 1024 for row in chosen]
            axes.plot([row["time_ratio"] for row in chosen], peaks, "o", color=colour, label=group, markersize=3)
    axes.set(xlabel="processor time, × plain", ylabel="peak, KiB")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.legend(frameon=False)


def _scales(axes: Axes, rows: Rows) -> None:
    for row in rows:
        if "dynamic" in row["variant"]:
            axes.plot(_places(row["scales"][0], row["steps"]), row["scales"][0], label=_skips(row), linewidth=1)
    axes.set(xlabel="share of the training", ylabel="loss scale, first seed")
    axes.set_yscale("log", base=2)
    axes.legend(frameon=False)


def _skips(row: Mapping[str, Any]) -> str:
    return f"{row['variant']}: {row['skipped'][0]} skipped"


def _places(curve: Sequence[float], steps: int) -> list[float]:
    """Where in the training each point is: curves have every so many steps."""
    every = max(1, -(-steps // len(curve)))
    return [number * every / steps for number in range(len(curve))]
