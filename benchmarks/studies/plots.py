"""A picture for each study: quality over steps, memory against time, and the loss scale with the steps it skipped."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.studies.tables import DIVERGED

Rows = Sequence[Mapping[str, Any]]
#: Ways whose curves part from each other; checkpoints are the plain step's to the bit.
CURVES = {
    "plain": "#000000",
    "accumulate 4": "#0072b2",
    "clip norm 0.1": "#009e73",
    "fp16, dynamic from 2²⁴": "#d55e00",
    "batch × 4": "#7f7f7f",
    "SGD, batch × 4, rate × 4, warm-up": "#b8860b",
    "TopK 5 %": "#56b4e9",
    "DGC 5 %, warm-up": "#cc79a7",
}
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

#: The same for all models, so that they can be compared, with room between the scales that start at 1 and the others.
SCALES_SHOWN = (0.5, 2.0**25)


def draw(models: Mapping[str, Rows], units: Mapping[str, str], goals: Mapping[str, float], path: Path) -> None:
    """Write the picture of a study, a line of three a model; the same bytes for the same rows."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "studies", "font.size": 8})
    figure = Figure(figsize=(12, 3.4 * len(models)), layout="constrained")
    for line, (model, rows) in zip(figure.subplots(len(models), 3, squeeze=False), models.items(), strict=True):
        qualities, memory, scales = line
        _qualities(qualities, rows)
        qualities.axhline(goals[model], color="#7f7f7f", linestyle=":", linewidth=1)
        qualities.set(xlabel="share of the training", ylabel=f"{model}: {units[model]}")
        _memory(memory, rows)
        _scales(scales, rows)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _qualities(axes: Axes, rows: Rows) -> None:
    low, high = math.inf, -math.inf
    for row in rows:
        if row["variant"] in CURVES and not any(None in point for curve in row["curves"] for point in curve):
            places = [point[0] / row["steps"] for point in row["curves"][0]]
            means = [statistics.mean(point[1] for point in points) for points in zip(*row["curves"], strict=True)]
            width = 2 if row["variant"] == "plain" else 1
            axes.plot(places, means, color=CURVES[row["variant"]], label=row["variant"], linewidth=width)
            if max(means) < DIVERGED:
                low, high = min(low, *means), max(high, *means)
    # what diverges leaves the picture
    room = 0.05 * (high - low)
    axes.set_ylim(low - room, high + room)
    axes.legend(frameon=False, fontsize=6)


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
    axes.legend(frameon=False, fontsize=7)


def _scales(axes: Axes, rows: Rows) -> None:
    for row in rows:
        if "dynamic" in row["variant"]:
            curve, skipped = row["scales"][0], row["skipped"][0]
            (line,) = axes.plot(curve, label=f"{row['variant']}: {len(skipped)} skipped", linewidth=1)
            axes.plot(skipped, [curve[step] for step in skipped], "x", color=line.get_color(), markersize=4)
    axes.set(xlabel="step, a cross where it was skipped", ylabel="loss scale, first seed")
    axes.set_yscale("log", base=2)
    axes.set_ylim(*SCALES_SHOWN)
    axes.legend(frameon=False, fontsize=7, loc="center", bbox_to_anchor=(0.5, 0.42))
