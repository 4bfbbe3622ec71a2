"""What fits at which sizes, and at what price: a table and a picture for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.text import Text

from graphopt.base.units import format_bytes
from graphopt.report.figures import signed_percent
from graphopt.report.text import plain, render, table

#: How a size is drawn: it fits as it is, only with recomputation, or not at all.
_AS_IT_IS, _RECOMPUTED, _NOT = "█", "▒", "·"


@dataclass(frozen=True)
class GridPoint:
    """Peaks at some sizes in bytes: eager's and the least; `overhead` is extra time in the budget, None where none."""

    sizes: tuple[int, ...]
    eager_bytes: int
    minimum_bytes: int
    overhead: float | None = None


@dataclass(frozen=True)
class SizeGrid:
    """What a step takes on a grid of sizes, the first of `names` down and the second, if there is one, across.

    `budget_bytes` is None where none was named; `note` says what the prices are of.
    """

    model: str
    names: tuple[str, ...]
    points: tuple[GridPoint, ...]
    budget_bytes: int | None
    note: str = ""

    def __str__(self) -> str:
        return grid_text(self)


def grid_text(grid: SizeGrid, width: int = 110, color: bool = False) -> str:
    """The grid: at each pair of sizes the least budget and eager's peak, or the price in the budget that was named."""
    across = sorted({point.sizes[1] for point in grid.points}) if len(grid.names) > 1 else []
    corner = f"{grid.names[0]} ↓" + (f" {grid.names[1]} →" if across else "")
    titles = [f"{size:,}" for size in across]
    if not across:
        titles = ["smallest budget", "eager", *(["extra time"] if grid.budget_bytes is not None else [])]
    made = table(corner, *titles, right=(corner, *titles))
    for first in sorted({point.sizes[0] for point in grid.points}):
        row = [point for point in grid.points if point.sizes[0] == first]
        made.add_row(f"{first:,}", *(_cells(row, grid) if across else _details(row[0], grid)))
    what = f"in {format_bytes(grid.budget_bytes)}" if grid.budget_bytes is not None else "smallest budget … eager"
    parts: list[RenderableType] = [Text(f"{plain(grid.model)}, {what}", style="bold"), made]
    if grid.budget_bytes is not None and across:
        parts += ["", *map(Text, _picture(grid, across))]
    if grid.note:
        parts += ["", Text(grid.note, style="dim")]
    return render(parts, width, color)


def _cells(row: Sequence[GridPoint], grid: SizeGrid) -> list[str]:
    if grid.budget_bytes is None:
        return [f"{format_bytes(p.minimum_bytes)} … {format_bytes(p.eager_bytes)}" for p in row]
    return [_price(point) for point in row]


def _details(point: GridPoint, grid: SizeGrid) -> list[str]:
    cells = [format_bytes(point.minimum_bytes), format_bytes(point.eager_bytes)]
    return [*cells, _price(point)] if grid.budget_bytes is not None else cells


def _price(point: GridPoint) -> str:
    return f"needs {format_bytes(point.minimum_bytes)}" if point.overhead is None else signed_percent(point.overhead)


def _picture(grid: SizeGrid, across: Sequence[int]) -> list[str]:
    """One character for each pair of sizes, the largest of the first on top."""
    assert grid.budget_bytes is not None
    by_sizes = {point.sizes: point for point in grid.points}
    rows = []
    for first in sorted({point.sizes[0] for point in grid.points}, reverse=True):
        drawn = "".join(2 * _mark(by_sizes[first, second], grid.budget_bytes) for second in across)
        rows.append(f"{first:>11,} ┤{drawn}")
    ends = f"{across[0]:,}", f"{across[-1]:,}"
    rows.append(f"{'':>11} └{'─' * (2 * len(across))}")
    rows.append(f"{'':>11}  {ends[0]}{ends[1]:>{max(2 * len(across) - len(ends[0]), len(ends[1]) + 1)}}")
    return [*rows, f"{'':>11}  {_AS_IT_IS} fits as it is   {_RECOMPUTED} fits with recomputation   {_NOT} does not fit"]


def _mark(point: GridPoint, budget_bytes: int) -> str:
    if point.eager_bytes <= budget_bytes:
        return _AS_IT_IS
    return _NOT if point.overhead is None else _RECOMPUTED
