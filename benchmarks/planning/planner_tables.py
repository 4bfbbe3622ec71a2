"""What benchmarks/planning/planners.py found, as tables: in the terminal, and as Markdown for docs/.

python -m benchmarks.planning.planner_tables planners.json [docs/planners.md docs/results.md]

With files the tables are written into each, between the two lines that mark their place; results.md gets verdicts.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Data = dict[str, list[dict[str, Any]]]

SHOWN = {"model": ("0.7", "0.5", "0.35", "0.25"), "instance": ("0.9", "0.8", "0.6", "0.4")}
"""Shares of eager's peak in the tables; the JSON has more."""
NEAR_OPTIMUM = 0.01
MOST_OPS, MOST_SECONDS = 1000, 0.5
BEGIN, END, VERDICTS = "<!-- planners -->", "<!-- end of planners -->", "Verdicts"
"""Where the tables stand in a page, and the one that results.md has."""


@dataclass(frozen=True)
class Grid:
    """A table of texts."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def verdicts(data: Data) -> list[dict[str, Any]]:
    """The claims that are to hold over all rows, whether they do, and by how much."""
    return [
        {"claim": claim, "holds": holds, "detail": detail}
        for claim, holds, detail in (
            *_against_peers(data),
            *_against_published(data["published"]),
            *_against_optima(data["optima"]),
            *_in_time(data),
        )
    ]


def _against_peers(data: Data) -> Iterator[tuple[str, bool, str]]:
    rows = data["peers"]
    if not rows:
        return
    gaps = [row["peer_overhead"] - row["auto_overhead"] for row in rows]
    verdict = Counter(row["verdict"] for row in rows)
    counts = f"{verdict['better']} better, {verdict['equal']} equal, {verdict['WORSE']} worse"
    yield "at every peak that a peer reaches, auto's time is at most the peer's", not verdict["WORSE"], counts
    median = statistics.median(gaps)
    yield "in the median it is less", median > 0, f"{median * 100:.1f} points of eager's time"
    minimum = {row["name"]: row["minimum_bytes"] for row in data["problems"]}
    lowest = {row["model"]: min(r["peer_peak_bytes"] for r in rows if r["model"] == row["model"]) for row in rows}
    above = [name for name, peak in lowest.items() if minimum[name] > peak]
    shares = [minimum[name] / peak for name, peak in lowest.items()]
    detail = f"{statistics.median(shares):.2f} of it in the median, {max(shares):.2f} at most {' '.join(above)}"
    yield "auto's smallest budget is at or below every peer's smallest true peak", not above, detail.rstrip()


def _against_published(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, bool, str]]:
    for peer in dict.fromkeys(row["peer"] for row in rows):
        points = [row for row in rows if row["peer"] == peer]
        lost = [f"{r['problem']} at {r['share']:.0%}" for r in points if _is_dearer(r)]
        detail = f"{len(points) - len(lost)} of {len(points)} points {'(not: ' + ', '.join(lost) + ')' if lost else ''}"
        yield f"auto is at or below {peer}'s published figures", not lost, detail.rstrip()


def _is_dearer(row: dict[str, Any]) -> bool:
    if row["overhead"] is None:
        return False
    return row["auto_overhead"] is None or row["auto_overhead"] > row["overhead"]


def _against_optima(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, bool, str]]:
    proven = [row for row in rows if row["note"] != "not proven"]
    if not proven:
        return
    above = {f"{r['problem']} at {r['share']:.0%}": _above(r) for r in proven}
    worst = max(above, key=lambda name: above[name])
    detail = f"{len(proven)} points; furthest {above[worst]:+.2%} ({worst})"
    yield "auto is within 1% of every proven optimum", above[worst] <= NEAR_OPTIMUM, detail


def _in_time(data: Data) -> Iterator[tuple[str, bool, str]]:
    """Processor seconds of whole curves: against those of a solver for one budget, and of all up to 1,000 ops."""
    theirs = [row for row in data["optima"] if row["peer"] == "Moccasin"]
    if theirs:
        ratios = {f"{r['problem']} at {r['share']:.0%}": r["solver_seconds"] / r["auto_seconds"] for r in theirs}
        least = min(ratios, key=lambda name: ratios[name])
        detail = f"{statistics.median(ratios.values()):,.0f}th in the median, {ratios[least]:,.0f}th at most ({least})"
        claim = "auto plans all budgets in a hundredth of the time in which Moccasin proves one"
        yield claim, ratios[least] >= 100, detail
    small = {row["name"]: row["plan_seconds"] for row in data["problems"] if row["ops"] <= MOST_OPS}
    if small:
        slowest = max(small, key=lambda name: small[name])
        detail = f"{len(small)} problems, {statistics.median(small.values()):.2f} s in the median, "
        yield (
            f"up to {MOST_OPS:,} ops, auto plans all budgets in {MOST_SECONDS} s",
            small[slowest] < MOST_SECONDS,
            f"{detail}{small[slowest]:.2f} s at most ({slowest})",
        )


def _above(row: dict[str, Any]) -> float:
    if row["auto_overhead"] is None:
        return float("inf")
    return float((1 + row["auto_overhead"]) / (1 + row["overhead"]) - 1)


def tables(data: Data) -> list[Grid]:
    """All tables that have rows."""
    found = verdicts(data)
    grids = [
        Grid(
            "Verdicts",
            ("claim", "holds", "by how much"),
            [(v["claim"], "yes" if v["holds"] else "NO", v["detail"]) for v in found],
        ),
        _models(data),
        _instances(data),
        _beside("Published by others", data["published"]),
        _beside("Optima", data["optima"]),
    ]
    return [grid for grid in grids if grid.rows]


def _models(data: Data) -> Grid:
    """Captured models, by themselves and against the peers that can run them."""
    rows = []
    for row in data["problems"]:
        if row["group"] == "model":
            rows.append((*_figures(row, SHOWN["model"]), *_peers(data, row["name"])))
    columns = (
        *_columns(SHOWN["model"]),
        "every block checkpointed / auto there",
        "PyTorch's ten ratios",
        "their lowest",
    )
    return Grid(
        "Models: extra time at shares of eager's peak (no plan can be below); smallest budget, and a floor under it "
        "in any order: the largest op with what must be kept; every block in torch.utils.checkpoint; "
        "PyTorch's activation_memory_budget: auto better / equal / worse, and by how many points in the median",
        columns,
        rows,
    )


def _instances(data: Data) -> Grid:
    rows = [_figures(row, SHOWN["instance"]) for row in data["problems"] if row["group"] != "model"]
    return Grid(
        "Instances of the literature, and generated ones: the same, at shares of the peak",
        _columns(SHOWN["instance"]),
        rows,
    )


def _columns(shares: Sequence[str]) -> tuple[str, ...]:
    return ("", "ops", "planned in", *(f"{float(share):.0%}" for share in shares), "smallest budget", "floor")


def _figures(row: dict[str, Any], shares: Sequence[str]) -> tuple[str, ...]:
    cells = (_with_bound(row["shares"].get(share)) for share in shares)
    least = f"{row['minimum_bytes'] / row['eager_peak_bytes']:.0%}: {_percent(row['minimum_overhead'])}"
    floor = f"{row['floor_bytes'] / row['eager_peak_bytes']:.0%}"
    return (row["name"], f"{row['ops']:,}", f"{row['plan_seconds']:.2f} s", *cells, least, floor)


def _with_bound(at_share: dict[str, float] | None) -> str:
    if at_share is None:
        return "–"
    return f"{_percent(at_share['auto'])} ({_percent(at_share['bound'])})"


def _peers(data: Data, model: str) -> tuple[str, str, str]:
    """How checkpointing every block and PyTorch's budget do on a model, and the least true peak of the latter."""
    mine = [row for row in data["peers"] if row["model"] == model]
    ratios = [row for row in mine if row["peer"] != "checkpoint"]
    blocks = [_at_block(row) for row in mine if row["peer"] == "checkpoint"]
    if not ratios:
        return (*(blocks or ["–"]), "–", "–")
    verdict = Counter(row["verdict"] for row in ratios)
    gap = statistics.median(row["peer_overhead"] - row["auto_overhead"] for row in ratios)
    lowest = min(row["peer_peak_bytes"] / row["eager_peak_bytes"] for row in ratios)
    counts = f"{verdict['better']} / {verdict['equal']} / {verdict['WORSE']}, {gap * 100:.1f}"
    return (*(blocks or ["–"]), counts, f"{lowest:.0%}")


def _at_block(row: dict[str, Any]) -> str:
    share = row["peer_peak_bytes"] / row["eager_peak_bytes"]
    return f"{_percent(row['peer_overhead'])} at {share:.0%} / {_percent(row['auto_overhead'])}"


def _beside(title: str, found: Sequence[dict[str, Any]]) -> Grid:
    keys = dict.fromkeys((row["problem"], row["peer"]) for row in found)
    shares = sorted({row["share"] for row in found}, reverse=True)
    rows = []
    for problem, peer in keys:
        mine = {row["share"]: row for row in found if (row["problem"], row["peer"]) == (problem, peer)}
        rows.append((problem, peer, *(_pair(mine.get(share)) for share in shares)))
    return Grid(f"{title}: theirs / auto's", ("", "peer", *(f"{share:.0%}" for share in shares)), rows)


def _pair(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    theirs = "no plan" if row["overhead"] is None else _percent(row["overhead"])
    mine = "no plan" if row["auto_overhead"] is None else _percent(row["auto_overhead"])
    return f"{theirs} / {mine}" + (f" ({row['note']})" if row["note"] else "")


def _percent(fraction: float) -> str:
    return f"{round(fraction, 4) + 0.0:+.1%}" if fraction >= 0.09995 else f"{round(fraction, 4) + 0.0:+.2%}"


def print_tables(data: Data) -> None:
    """Tables for a terminal."""
    console = Console(width=None if sys.stdout.isatty() else 180)
    for grid in tables(data):
        made = Table(*grid.columns, title=grid.title)
        for row in grid.rows:
            made.add_row(*row, style="red" if "NO" in row else "")
        console.print(made)


def markdown(grid: Grid) -> str:
    """A table under its title."""
    lines = (grid.columns, ["---"] * len(grid.columns), *grid.rows)
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return text if grid.title == VERDICTS else f"## {grid.title}\n\n{text}"


def main(path: str, *pages: str) -> None:
    grids = tables(json.loads(Path(path).read_text(encoding="utf-8")))
    if not pages:
        print_tables(json.loads(Path(path).read_text(encoding="utf-8")))
    for name in pages:
        page = Path(name)
        shown = [grid for grid in grids if grid.title == VERDICTS or page.name != "results.md"]
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        assert rest and END in rest, f"{name} lacks the lines {BEGIN} and {END}"
        text = "\n\n".join(map(markdown, shown))
        page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
