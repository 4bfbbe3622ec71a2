"""The tables of docs/studies.md, as Markdown, from the JSON of the results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.studies.subjects import STUDIES
from benchmarks.studies.variants import variants_of

#: No loss or error of a training that learned anything is above.
DIVERGED = 10
Results = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]
#: Of each model, what its quality is.
UNITS = {
    "resnet": "digits named rightly",
    "gpt": "nats a word",
    "bert": "sources named rightly",
    "translation": "nats a character",
    "patches": "error over seasonal naive's",
    "lstm": "error over seasonal naive's",
}


def tables(results_of: Callable[[str], Results]) -> dict[str, str]:
    """Every table by name; `results_of` gives a study's results, none of one that was not run."""
    found: dict[str, str] = {}
    every: list[Mapping[str, Any]] = []
    for study, models in STUDIES.items():
        rows = sorted(results_of(study).get("rows", []), key=_place)
        every += rows
        for model in models:
            of_model = [row for row in rows if row["model"] == model]
            if of_model:
                found[model] = ablation_table(of_model, UNITS[model])
    if every:
        found["scales"] = scale_table(every)
        found["moved"] = moved_table(every)
        found["overview"] = overview_table(every)
    basics = results_of("basics")
    if basics:
        found["state"] = _table(*_columns(basics["state"]))
        found["accumulation"] = _table(*_columns(basics["accumulation"]))
    return found


def _place(row: Mapping[str, Any]) -> tuple[str, int]:
    names = [variant.name for variant in variants_of(row["model"])]
    return row["model"], names.index(row["variant"])


def ablation_table(rows: Rows, unit: str) -> str:
    """One row a way to train one model."""
    head = (
        "way",
        "peak, KiB",
        "ms a step",
        "time, ×",
        unit,
        "seeds that reach the goal",
        "steps skipped",
        "KB sent a step",
        "losses",
    )
    plain_peak = next(row["peak_bytes"] for row in rows if row["variant"] == "plain")
    return _table(head, [_ablation_cells(row, plain_peak) for row in rows])


def _ablation_cells(row: Mapping[str, Any], plain_peak: int) -> tuple[str, ...]:
    peak = row["peak_bytes"]
    is_compared = row["variant"] != "plain" and row["group"] != "ranks"
    return (
        row["variant"],
        f"{peak / 1024:,.0f} ({peak / plain_peak:.0%})",
        f"{row['seconds'] * 1000:.1f}",
        f"{row['time_ratio']:.2f}",
        _spread(row["qualities"]),
        f"{sum(row['reached'])} of {len(row['reached'])}",
        _skips(row) if any(row["skipped"]) else "0",
        f"{row['sent_bytes'] / 1000:,.1f}" if row["sent_bytes"] else "",
        "plain's bits" if is_compared and all(row["same_losses"]) else "",
    )


def overview_table(rows: Rows) -> str:
    """The mean quality of every way with every model, and where a seed missed the goal."""
    models = list(dict.fromkeys(model for models in STUDIES.values() for model in models))
    found = {(row["model"], row["variant"]): row for row in rows}
    names = dict.fromkeys(variant.name for model in models for variant in variants_of(model))
    cells = [(name, *(_overview_cell(found.get((model, name))) for model in models)) for name in names]
    return _table(("way", *models), cells)


def _overview_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    if None in row["qualities"] or max(row["qualities"]) > DIVERGED:
        return "diverged"
    return f"{statistics.mean(row['qualities']):.3f}" + " ✗" * (not all(row["reached"]))


def scale_table(rows: Rows) -> str:
    """Where the dynamic scale went for each model, and what it cost."""
    head = ("model", "start", "scale at the end, each seed", "steps skipped, each seed", "of", "quality")
    chosen = [row for row in rows if "dynamic" in row["variant"] and row["group"] == "loss scale"]
    cells = [
        (
            row["model"],
            row["variant"],
            ", ".join(_power(curve[-1]) for curve in row["scales"]),
            _skips(row),
            str(row["steps"]),
            _spread(row["qualities"]),
        )
        for row in chosen
    ]
    return _table(head, cells)


def moved_table(rows: Rows) -> str:
    """How far rare and frequent rows of the embedding moved, and how often the norm was above its threshold."""
    head = ("model", "way", "rare rows moved", "frequent rows moved", "rare over frequent", "steps clipped", "quality")
    cells = []
    for row in rows:
        moved = [pair for pair in row["moved"] if pair is not None and None not in pair]
        if row["group"] not in ("plain", "clip", "SGD") or not moved:
            continue
        rare, frequent = (statistics.mean(pair[kind] for pair in moved) for kind in (0, 1))
        share = statistics.mean(row["clipped"]) / row["steps"]
        clipped = f"{share:.0%}" if "clip norm" in row["variant"] else ""
        shares = (f"{rare:.3g}", f"{frequent:.3g}", f"{rare / frequent:.2g}", clipped)
        cells.append((row["model"], row["variant"], *shares, _spread(row["qualities"])))
    return _table(head, cells)


def _skips(row: Mapping[str, Any]) -> str:
    return ", ".join(str(len(steps)) for steps in row["skipped"])


def _spread(values: Sequence[float | None]) -> str:
    """Mean, least and largest of the seeds."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "not a number"
    if max(numbers) > DIVERGED:
        return f"{max(numbers):.1g} at worst"
    low, mean, high = min(numbers), statistics.mean(numbers), max(numbers)
    lost = f", {len(values) - len(numbers)} not a number" if len(numbers) < len(values) else ""
    return f"{mean:.3f} ({low:.3f} to {high:.3f}{lost})"


def _power(scale: float) -> str:
    """A scale as a power of two, which ours are."""
    return "2" + str(round(math.log2(scale))).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))


def _columns(rows: Rows) -> tuple[Sequence[str], list[Sequence[str]]]:
    return list(rows[0]), [
        [f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in rows
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
