"""Reports and estimates in a notebook: a few figures and a drawing, which need no script."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.base.glance import glance_html
from graphopt.base.units import format_bytes
from graphopt.report import figures
from graphopt.report.data import Report
from graphopt.report.html import curve_drawing, timeline_drawing


def report_glance(report: Report) -> str:
    """The figures of the report's first lines, and memory over the step."""
    graph = figures.main_graph(report)
    is_drawn = graph is not None and graph.timeline("chosen") is not None
    drawing = timeline_drawing(report, graph) if is_drawn and graph is not None else None
    return glance_html(f"{report.plan.model}: {figures.verdict(report)}", figures.summary(report), drawing)


def estimate_glance(model: str, device: str, points: Sequence[tuple[int, float, str]], eager_peak_bytes: int) -> str:
    """From the least budget to eager's peak, and the curve between."""
    ordered = sorted(points)
    rows = [
        ("smallest budget", f"{format_bytes(ordered[0][0])}, {figures.signed_percent(ordered[0][1])} time"),
        ("eager peak", f"{format_bytes(eager_peak_bytes)} (as captured)"),
        ("device", device),
    ]
    return glance_html(f"{model} trains in", rows, curve_drawing(ordered) if len(ordered) > 1 else None)
