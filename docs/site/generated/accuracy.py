"""Predicted against measured: tables of all results that are kept in benchmarks/results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from docs.site.generated.markdown import code, table

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"
Row = dict[str, Any]


@dataclass(frozen=True)
class Peak:
    """One step that was measured: its budget (None without one), the peak as predicted, and as measured."""

    run: str
    what: str
    budget_bytes: int | None
    predicted_bytes: int
    measured_bytes: int

    @property
    def ratio(self) -> float:
        return self.predicted_bytes / self.measured_bytes

    @property
    def is_inside(self) -> bool:
        return self.budget_bytes is None or self.measured_bytes <= self.budget_bytes


@dataclass(frozen=True)
class Time:
    """The time of a step over eager's, as predicted and as measured."""

    run: str
    what: str
    predicted: float
    measured: float


@dataclass(frozen=True)
class MeasuredRun:
    """A file of results: what was run, its rows of measured steps, and how many budgets were refused."""

    title: str
    name: str
    peaks: tuple[Peak, ...]
    refused: int


def newest(stem: str) -> Path:
    """The newest file of a benchmark: names end in a date, or in none."""
    found = sorted(
        path for path in RESULTS.glob(f"{stem}*.json") if re.fullmatch(rf"{stem}(_[\d-]+)?\.json", path.name)
    )
    assert found, f"no results of {stem}"
    return found[-1]


def rows_of(path: Path, key: str) -> list[Row]:
    """The rows of a file, which are all of it or stand under a key."""
    data = json.loads(path.read_text(encoding="utf-8"))
    rows: list[Row] = data if isinstance(data, list) else data[key]
    return rows


def matrix(row: Row) -> str:
    share = row["share"]
    at = f"{share:.0%} of eager's peak" if isinstance(share, float) else "the least budget"
    return f"{row['model']}, {at}"


def step_matrix(row: Row) -> str:
    clipped = ", clipped and scaled" if row["clipped"] else ""
    return f"{row['model']}, accumulate={row['accumulate']!r}{clipped}"


def moved(row: Row) -> str:
    rate = "the file's speed" if not row["megabytes_per_second"] else f"{row['megabytes_per_second']} MB/s"
    return f"{row['model']}, {rate}"


#: A benchmark's title, the stem of its file, the key of its rows, their names, and the fields that have the predicted
#: and the measured bytes.
PEAKS: tuple[tuple[str, str, str, Callable[[Row], str], str, str], ...] = (
    ("the zoo", "matrix_cpu", "rows", matrix, "predicted_bytes", "measured_bytes"),
    ("whole training steps", "step_matrix_cpu", "rows", step_matrix, "predicted_bytes", "measured_bytes"),
    ("sharded over two ranks", "sharded_1gbit_cpu", "cells", lambda row: row["model"], "planned_bytes", "peak_bytes"),
    ("the zoo on a GPU", "matrix_cuda", "rows", matrix, "predicted_bytes", "measured_bytes"),
    ("the zoo on a GPU, default allocator", "matrix_cuda_default_allocator", "rows", matrix, "predicted_bytes",
     "measured_bytes"),
    ("a large GPT-2 on a GPU", "headline_cuda", "rows", lambda row: row["contender"], "predicted_bytes", "peak_bytes"),
)  # fmt: skip


def runs() -> list[MeasuredRun]:
    """All benchmarks that predict peaks."""
    found = []
    for title, stem, key, what, predicted, measured in PEAKS:
        path = newest(stem)
        rows = [row for row in rows_of(path, key) if row.get(predicted) or row.get("error")]
        ran = [row for row in rows if not row.get("error")]
        peaks = tuple(Peak(title, what(row), budget(row), row[predicted], row[measured]) for row in ran)
        found.append(MeasuredRun(title, path.name, peaks, len(rows) - len(ran)))
    return found


def budget(row: Row) -> int | None:
    """A budget that is one; runs without a limit name a petabyte."""
    limit = row["budget_bytes"]
    return limit if limit and limit < 2**50 else None


def peaks() -> str:
    """One line a benchmark: how many steps, how many inside of their budgets, how far predictions were off."""
    headings = ("run", "steps", "inside", "refused", "predicted over measured", "median", "over by, at most")
    files = ", ".join(code(run.name) for run in runs())
    return f"{table(headings, [line(run) for run in runs()])}\n\nThe files, in this order: {files}."


def line(run: MeasuredRun) -> tuple[object, ...]:
    limited = [peak for peak in run.peaks if peak.budget_bytes is not None]
    over = [peak.measured_bytes - peak.budget_bytes for peak in limited if not peak.is_inside]  # type: ignore[operator]
    ratios = [peak.ratio for peak in run.peaks]
    return (
        run.title,
        len(run.peaks),
        f"{len(limited) - len(over)} of {len(limited)}",
        run.refused or "",
        spread(ratios),
        f"{median(ratios):.5f}",
        in_bytes(max(over)) if over else "",
    )


def spread(ratios: Iterable[float]) -> str:
    found = sorted(ratios)
    return f"{found[0]:.4f} to {found[-1]:.4f}"


def in_bytes(size: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} B"


def furthest() -> str:
    """Of each run the steps whose predictions were furthest off, below and above what was measured."""
    headings = ("run", "step", "measured", "predicted less measured", "predicted over measured", "inside")
    found: list[Peak] = []
    for run in runs():
        by_ratio = sorted(run.peaks, key=lambda peak: peak.ratio)
        found += dict.fromkeys((by_ratio[0], by_ratio[-1]))
    return table(headings, [peak_line(peak) for peak in found])


def peak_line(peak: Peak) -> tuple[str, ...]:
    inside = "no budget" if peak.budget_bytes is None else "yes" if peak.is_inside else "no"
    apart = peak.predicted_bytes - peak.measured_bytes
    sign = "-" if apart < 0 else ""
    return peak.run, peak.what, in_bytes(peak.measured_bytes), sign + in_bytes(abs(apart)), f"{peak.ratio:.6f}", inside


def kept() -> str:
    """Runs whose files have budgets and measured peaks alone: how many steps were inside."""
    files = (
        ("values in a file", "offload_cpu", "cells"),
        ("through Inductor, and with eager's kernels", "compiled_cpu", "ways"),
    )
    lines = []
    for title, stem, key in files:
        path = newest(stem)
        rows = [row for row in rows_of(path, key) if is_ours(row)]
        inside = [row for row in rows if row["peak_bytes"] <= row["budget_bytes"]]
        share = median(row["peak_bytes"] / row["budget_bytes"] for row in rows)
        lines.append((title, code(path.name), f"{len(inside)} of {len(rows)}", f"{share:.1%}"))
    return table(("run", "file", "inside", "measured over budget, median"), lines)


def is_ours(row: Row) -> bool:
    """Whether it is a step of graphopt's; files have others beside them."""
    return row.get("way", "graphopt").startswith("graphopt") and not row.get("refused")


def models() -> str:
    """The zoo, model by model: how far peaks were off, and what gradients were equal to."""
    rows = rows_of(newest("matrix_cpu"), "rows")
    headings = ("model", "eager's peak", "budgets", "refused", "predicted over measured", "gradients")
    return table(headings, [model(name, [r for r in rows if r["model"] == name]) for name in unique(rows)])


def unique(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in rows))


def model(name: str, rows: list[Row]) -> tuple[object, ...]:
    ran = [row for row in rows if not row["error"]]
    is_eagers = not any(row["unlike_eager"] for row in ran)
    is_captureds = not any(row["unlike_captured"] for row in ran)
    equal = "bitwise eager's" if is_eagers else "bitwise as captured" if is_captureds else "differ"
    ratios = [row["predicted_bytes"] / row["measured_bytes"] for row in ran]
    return name, in_bytes(rows[0]["eager_peak_bytes"]), len(ran), len(rows) - len(ran), spread(ratios), equal


def times() -> list[Time]:
    """All steps whose time was both predicted and measured, as ratios to eager's."""
    found = [
        Time("steps on a CPU", f"{row['model'].removesuffix('_anchor')}, {row['step']}", row["predicted"], row["ratio"])
        for row in rows_of(newest("step_time_cpu"), "rows")
        if row["against"] == "eager"
    ]
    found += [
        Time(
            "a large GPT-2 on a GPU", row["contender"].removeprefix("graphopt, "), row["predicted_ratio"], row["ratio"]
        )
        for row in rows_of(newest("headline_cuda"), "rows")
        if row["predicted_ratio"]
    ]
    for row in rows_of(newest("offload_cpu"), "cells"):
        what = f"{moved(row)}, {in_bytes(row['budget_bytes'])}"
        found.append(Time("values in a file", what, row["planned"], row["measured"]))
    return found


def seconds() -> str:
    """Steps whose time was predicted, with the spread of a run of many in one line."""
    rows = []
    for run in dict.fromkeys(each.run for each in times()):
        these = [each for each in times() if each.run == run]
        off = [each.measured / each.predicted for each in these]
        rows.append((run, len(these), spread(off), f"{median(off):.3f}"))
    return table(("run", "steps", "measured over predicted", "median"), rows)


def each_time() -> str:
    """Every such step, but for those of the run that has dozens."""
    rows = [
        (
            each.run,
            each.what,
            f"{each.predicted:.2f}",
            f"{each.measured:.2f}",
            f"{each.measured / each.predicted - 1:+.0%}",
        )
        for each in times()
        if each.run != "values in a file"
    ]
    return table(("run", "step", "predicted, over eager", "measured, over eager", "off by"), rows)


def loops() -> str:
    """Random modules in ordinary loops: what became of each of them, as the benchmark itself judged."""
    rows = rows_of(newest("random_loops_cpu"), "cases")
    outcomes = {"ok": "right", "refused": "refused", "named": "differ by a known cause",
                "silent excess": "silently over", "false alarm": "told without cause", "differs": "differ"}  # fmt: skip
    assert {row["outcome"] for row in rows} <= set(outcomes)
    lines = []
    for loop in sorted({row["loop"] for row in rows}):
        these = [row for row in rows if row["loop"] == loop]
        told = sum(row["told"] > 0 for row in these)
        lines.append((loop, *(sum(row["outcome"] == name for row in these) for name in outcomes), told))
    return table(("loop", *outcomes.values(), "a step over was told of in"), lines)


def sent() -> str:
    """Bytes that a step sends: as the methods say, and as counted at the interface."""
    path = newest("compression_cpu")
    rows = [row for row in rows_of(path, "speed") if row.get("stated_bytes") and row.get("sent_bytes")]
    lines = []
    for way in dict.fromkeys(row["way"] for row in rows):
        these = [row["sent_bytes"] / row["stated_bytes"] for row in rows if row["way"] == way]
        lines.append((code(way), len(these), spread(these)))
    return table(("way", "runs", "counted over stated"), lines)


def picture() -> str:
    """Every measured peak over its prediction, run by run, as a picture."""
    from docs.site.generated.picture import dots

    return dots([(run.title, [1 / peak.ratio for peak in run.peaks]) for run in runs()])
