"""Drawings of the page: memory over the steps, the memory/time curve, what fills the peak."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape

from graphopt.base.units import format_bytes
from graphopt.report import figures
from graphopt.report.data import GraphReport, Report

_WIDTH, _HEIGHT = 1000, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 86, 16, 26, 34
_COLUMNS = 449


def timeline(report: Report, graph: GraphReport) -> str:
    """Bytes alive at each step, eager behind chosen; the page's script reads the data attributes."""
    steps = max(len(graph.live_bytes), 1)
    middle = min(max(round(_COLUMNS * graph.boundary_step / steps), 1), _COLUMNS - 1)
    base = figures.resident_bytes(report)
    chosen = [base + b for b in figures.fold(graph.live_bytes, graph.boundary_step, _COLUMNS, middle)]
    eager = [base + b for b in figures.fold(graph.eager_live_bytes, graph.eager_boundary_step, _COLUMNS, middle)]
    budget = report.plan.budget_bytes
    top = 1.06 * max(*chosen, *eager, budget if budget < 1.5 * max(*chosen, *eager, 1) else 0, 1)
    axes = _Axes(0, _COLUMNS, top)
    parts = [
        axes.grid(),
        f'<path class="eager" d="{axes.area(eager)}"/><path class="eager-line" d="{axes.line(eager)}"/>',
        f'<path class="chosen" d="{axes.area(chosen)}"/><path class="chosen-line" d="{axes.line(chosen)}"/>',
        f'<path class="resident" d="{axes.area([base] * _COLUMNS)}"/>' if base else "",
        axes.level(budget, f"budget {format_bytes(budget)}") if budget <= top else "",
        axes.boundary(middle),
        '<line class="guide" y1="26" y2="296" hidden="hidden"/>',
    ]
    data = escape(json.dumps({"chosen": chosen, "eager": eager, "left": _LEFT, "right": _WIDTH - _RIGHT}))
    return _svg("timeline", "Memory over the steps, eager and chosen", parts, f' data-series="{data}"')


def pareto_chart(points: Sequence[tuple[int, float, str]], chosen: tuple[int, float] | None, budget: int | None) -> str:
    """Draw extra time over peak bytes; each point is `(bytes, overhead, label)`, the chosen one is marked."""
    points = sorted(points)
    ends = [p for p, *_ in points] + [p for p in (budget,) if p is not None and p <= 1.3 * points[-1][0]]
    low, high = min(ends), max(ends)
    room = max((high - low) * 0.05, 1)
    axes = _Axes(low - room, high + room, 1.12 * max(*(o for _, o, _ in points), 0.01))
    stairs = f"M{axes.x(points[0][0]):.1f} {_TOP}"
    for number, extra, _ in points:
        stairs += f"H{axes.x(number):.1f}V{axes.y(extra):.1f}"
    parts = [axes.grid(percent=True), axes.bytes_below(), f'<path class="curve" d="{stairs}H{_WIDTH - _RIGHT}"/>']
    if budget is not None and budget <= high:
        x = axes.x(budget)
        parts.append(f'<line class="budget" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text class="budget-text" x="{x + 5:.1f}" y="{_TOP + 10}">budget</text>')
    for number, extra, label in points:
        parts.append(axes.dot("point", 4, number, extra, label))
    if chosen:
        parts.append(axes.dot("point mark", 7, *chosen, "chosen"))
        x, y = axes.x(chosen[0]) + 12, axes.y(chosen[1]) - 8
        parts.append(f'<text class="strong" x="{x:.1f}" y="{y:.1f}">chosen</text>')
    return _svg("pareto", "Extra time over peak memory", parts)


def bar(report: Report) -> str:
    """What fills the peak, as one bar as long as the budget, or as the peak where that is longer."""
    rows = figures.breakdown(report)
    plan = report.plan
    whole = max(plan.budget_bytes, sum(size for _, size in rows), 1)
    parts, x = ['<rect class="free" x="0" y="0" width="1000" height="34" rx="5"/>'], 0.0
    for i, (kind, size) in enumerate(rows):
        width = 1000 * size / whole
        title = f"<title>{escape(kind)}: {format_bytes(size)}</title>"
        parts.append(f'<rect class="kind-{i % 10}" x="{x:.2f}" y="0" width="{width:.2f}" height="34">{title}</rect>')
        x += width
    return (
        '<svg class="bar" viewBox="0 0 1000 34" preserveAspectRatio="none" role="img" '
        f'aria-label="What fills the peak">{"".join(parts)}</svg>'
    )


class _Axes:
    """Where numbers lie in a drawing that is `left` to `right` wide and 0 to `top` high."""

    def __init__(self, left: float, right: float, top: float) -> None:
        self.left, self.right, self.top = left, right, top

    def x(self, value: float) -> float:
        return _LEFT + (value - self.left) / (self.right - self.left) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - value / self.top * (_HEIGHT - _TOP - _BOTTOM)

    def line(self, values: Sequence[int]) -> str:
        steps = "".join(f"V{self.y(v):.1f}H{self.x(i + 1):.1f}" for i, v in enumerate(values))
        return f"M{_LEFT} {self.y(values[0]):.1f}{steps}"

    def area(self, values: Sequence[int]) -> str:
        return f"{self.line(values)}V{self.y(0):.1f}H{_LEFT}Z"

    def grid(self, percent: bool = False) -> str:
        lines = []
        for value in _ticks(0, self.top, 4, 10.0 if percent else 2.0):
            y = self.y(value)
            label = f"{value:.0%}" if percent and self.top > 0.1 else f"{value:.1%}" if percent else format_bytes(value)
            lines.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            lines.append(f'<text class="axis" text-anchor="end" x="{_LEFT - 8}" y="{y + 4:.1f}">{label}</text>')
        return "".join(lines)

    def bytes_below(self) -> str:
        texts = []
        for value in _ticks(self.left, self.right, 5, 2.0):
            place = f'x="{self.x(value):.1f}" y="{_HEIGHT - 12}"'
            texts.append(f'<text class="axis" text-anchor="middle" {place}>{format_bytes(value)}</text>')
        return "".join(texts)

    def level(self, value: int, text: str) -> str:
        y = self.y(value)
        return (
            f'<line class="budget" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="budget-text" text-anchor="end" x="{_WIDTH - _RIGHT - 4}" y="{y - 6:.1f}">{text}</text>'
        )

    def boundary(self, column: int) -> str:
        x, below = self.x(column), _HEIGHT - 12
        return (
            f'<line class="boundary" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
            f'<text class="axis" text-anchor="middle" x="{(_LEFT + x) / 2:.1f}" y="{below}">forward</text>'
            f'<text class="axis" text-anchor="middle" x="{(x + _WIDTH - _RIGHT) / 2:.1f}" y="{below}">backward</text>'
        )

    def dot(self, kind: str, radius: int, number: int, extra: float, label: str) -> str:
        title = f"{escape(label)}: {format_bytes(number)}, {figures.signed_percent(extra)}".removeprefix(": ")
        place = f'cx="{self.x(number):.1f}" cy="{self.y(extra):.1f}"'
        return f'<circle class="{kind}" r="{radius}" {place}><title>{title}</title></circle>'


def _ticks(low: float, high: float, count: int, base: float) -> list[float]:
    """Some `count` to twice as many round numbers: powers of two apart, or 1, 2 or 5 of a power of ten."""
    step = (high - low) / count
    if base == 2.0:
        unit = 2.0 ** math.floor(math.log2(step))
    else:
        unit = 10.0 ** math.floor(math.log10(step))
        unit *= max((m for m in (1, 2, 5) if m * unit <= step), default=1)
    first = math.ceil(low / unit)
    return [i * unit for i in range(first, first + 2 * count + 2) if i * unit <= high]


def _svg(kind: str, label: str, parts: Sequence[str], extra: str = "") -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}"{extra}>'
        f"{''.join(parts)}</svg>"
    )
