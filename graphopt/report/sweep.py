"""The memory/time curve of a model, for a terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from graphopt.base.units import format_bytes
from graphopt.report.chart import curve
from graphopt.report.figures import signed_percent
from graphopt.report.html import curve_drawing
from graphopt.report.page_data import curve_data
from graphopt.report.pages import render_page
from graphopt.report.text import left_out, plain, render, table

#: (peak bytes in the budget's measure, extra time as a fraction, planner)
Points = Sequence[tuple[int, float, str]]

MOST_ROWS = 16


#: What is meant by eager here, where no step is run.
_EAGER = (
    "Eager: the captured graph as it was traced, with nothing recomputed; `graphopt verify` measures the model as it is"
)


def sweep_text(model: str, points: Points, eager_peak_bytes: int, width: int = 110, color: bool = False) -> str:
    """The curve drawn, and a table of some of its points; `eager_peak_bytes` is that of the captured graph."""
    points = sorted(points)
    shown = _some(points)
    eager = eager_peak_bytes
    made = table("budget", "of eager", "extra time", "planner", right=("budget", "of eager", "extra time"))
    for number, extra, planner in shown:
        made.add_row(format_bytes(number), f"{number / max(eager, 1):.0%}", signed_percent(extra), Text(plain(planner)))
    ends = f"{format_bytes(points[0][0])} to {format_bytes(points[-1][0])}"
    head = f"{plain(model)} trains in {ends}, eager takes {format_bytes(eager)} as captured; extra time over peak:"
    drawing = Text("\n".join(curve([(number, extra) for number, extra, _ in points], width=min(90, width - 14))))
    drawing.highlight_regex("●", "cyan")
    rest = len(points) - len(shown)
    notes = [left_out(rest, "points between them")] if rest else []
    notes.append(Text(_EAGER, style="dim"))
    return render([Text(head, style="bold"), "", drawing, "", made, *notes], width, color)


def sweep_html(model: str, points: Points, eager_peak_bytes: int) -> str:
    """The curve as one self-contained page, with a table of all points; eager is the captured graph."""
    ordered = sorted(points)
    summary = [
        ("smallest budget", format_bytes(ordered[0][0]), ""),
        ("eager peak", format_bytes(eager_peak_bytes), "as captured"),
        ("extra time at the smallest", signed_percent(ordered[0][1]), ""),
    ]
    return render_page(
        "sweep.html",
        data={"graphs": [{"curve": curve_data(ordered)}]},
        model=model,
        summary=summary,
        drawing=curve_drawing(ordered),
        points=ordered,
        eager=max(eager_peak_bytes, 1),
        note=_EAGER,
    )


def _some(points: Points) -> Points:
    """At most MOST_ROWS points, first and last among them, evenly apart in bytes."""
    if len(points) <= MOST_ROWS:
        return points
    low, high = points[0][0], points[-1][0]
    kept: dict[int, tuple[int, float, str]] = {}
    for point in points:
        kept.setdefault((point[0] - low) * (MOST_ROWS - 1) // max(high - low, 1), point)
    return [*kept.values()]
