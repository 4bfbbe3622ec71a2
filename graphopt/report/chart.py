"""Charts of characters: memory over the steps of a schedule, and the memory/time curve."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.base.units import format_bytes
from graphopt.report.data import GraphReport, Report
from graphopt.report.figures import fold, resident_bytes, signed_percent

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_LABEL = 11


def timeline(report: Report, graph: GraphReport, width: int = 100, height: int = 11) -> list[str]:
    """Bytes alive at each step: chosen filled, eager shaded above it, the budget as a line."""
    columns = width - _LABEL - 2
    middle, chosen = folded(report, graph, "chosen", columns)
    _, eager = folded(report, graph, "eager", columns, middle)
    top = max(*chosen, *eager, 1)
    budget = report.plan.budget_bytes
    if budget <= 1.25 * top:
        top = max(top, budget)
    line = int(budget / top * height) if budget <= top else -1
    rows = []
    for row in range(height - 1, -1, -1):
        pairs = zip(chosen, eager, strict=True)
        cells = [_cell(c / top * height - row, e / top * height - row, row == line) for c, e in pairs]
        if cells[middle] in " ╌":
            cells[middle] = "┊"
        rows.append(f"{_row_label(row, height, line, top, budget):>{_LABEL}} ┤{''.join(cells)}")
    rows.append(f"{'0':>{_LABEL}} └{'─' * middle}┴{'─' * (columns - middle - 1)}")
    rows.append(f"{'':>{_LABEL}}  {'forward':^{middle}}{'backward':^{columns - middle}}".rstrip())
    limit = "╌ budget" if line >= 0 else f"(the budget, {format_bytes(budget)}, is above)"
    return [*rows, f"{'':>{_LABEL}}  █ chosen   ░ eager   {limit}"]


def folded(
    report: Report, graph: GraphReport, name: str, columns: int, middle: int | None = None
) -> tuple[int, list[int]]:
    """A timeline drawn into `columns`, what is resident counted; the backward begins at column `middle`.

    Where none is given, that is where the steps of this one have it.
    """
    found = graph.timeline(name)
    if found is None:
        return (columns // 2 if middle is None else middle), [resident_bytes(report)] * columns
    if middle is None:
        middle = min(max(round(columns * found.boundary_step / len(found.schedule)), 1), columns - 1)
    base = resident_bytes(report)
    return middle, [base + b for b in fold(found.total_bytes, found.boundary_step, columns, middle)]


def _cell(chosen: float, eager: float, on_budget: bool) -> str:
    """One character: how far the two columns reach into this row, 0 to 1 and beyond."""
    if chosen >= 1:
        return "█"
    if chosen * 8 >= 1:
        return _EIGHTHS[int(chosen * 8)]
    if on_budget:
        return "╌"
    return "░" if eager >= 0.5 else " "


def _row_label(row: int, height: int, line: int, top: int, budget: int) -> str:
    if row == line:
        return format_bytes(budget)
    if row == height - 1 or (row % 3 == 0 and 0 < row < height - 2 and abs(row - line) > 1):
        return format_bytes(top * (row + 1) / height)
    return ""


def curve(
    points: Sequence[tuple[int, float]], chosen: int | None = None, width: int = 72, height: int = 12
) -> list[str]:
    """Draw extra time over peak bytes, least memory on the left; the point at `chosen` bytes is marked."""
    if not points:
        return []
    low, high = min(p for p, _ in points), max(p for p, _ in points)
    most = max(*(o for _, o in points), 1e-9)
    grid = [[" "] * width for _ in range(height)]
    for number, extra in sorted(points, key=lambda point: point[0] == chosen):
        column = round((number - low) / max(high - low, 1) * (width - 1))
        row = round((1 - max(extra, 0) / most) * (height - 1))
        grid[row][column] = "◆" if number == chosen else "●"
    labels = {0: signed_percent(most), height - 1: signed_percent(0.0)}
    rows = [f"{labels.get(i, ''):>{_LABEL}} ┤{''.join(cells).rstrip()}" for i, cells in enumerate(grid)]
    left, right = format_bytes(low), format_bytes(high)
    return [
        *rows,
        f"{'':>{_LABEL}} └{'─' * width}",
        f"{'':>{_LABEL}}  {left}{right:>{max(width - len(left), len(right) + 2)}}",
    ]


def sparkline(values: Sequence[float]) -> str:
    """One character a value, from lowest to highest."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    return "".join(_EIGHTHS[1 + round((value - low) / ((high - low) or 1) * 7)] for value in values)
