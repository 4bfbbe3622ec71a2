"""A few figures and a small drawing for a notebook: no script, no style of its own, in the colours that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WIDTH, _HEIGHT, _BELOW, _ABOVE = 640, 150, 20, 6


@dataclass(frozen=True)
class Line:
    """A line of `(x, y)` in units of its own; one that is `filled` stands out, and what is below it is shaded."""

    points: tuple[tuple[float, float], ...]
    filled: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Drawing:
    """Lines and dots over a base line at 0, with a word at either end, and one that says what it shows."""

    lines: tuple[Line, ...]
    label: str
    left: str
    right: str
    dots: tuple[tuple[float, float], ...] = ()

    def __html__(self) -> str:
        return drawing_html(self)


def stairs(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The corners of a line that stays at each point's height until the next one."""
    corners: list[tuple[float, float]] = []
    for x, y in points:
        if corners:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    return tuple(corners)


def glance_html(title: str, rows: Sequence[tuple[str, str]], drawing: Drawing | None = None) -> str:
    """A title, labels with their figures, and a drawing, as markup; all text is escaped."""
    return _rendered(title=title, rows=rows, most=_WIDTH, **(_drawn(drawing) if drawing else {"lines": ()}))


def drawing_html(drawing: Drawing) -> str:
    """The drawing alone, as wide as its place."""
    return _rendered(title="", rows=(), most=1200, **_drawn(drawing))


def _drawn(drawing: Drawing) -> dict[str, Any]:
    places = [point for line in drawing.lines for point in line.points]
    low, high = min(x for x, _ in places), max(x for x, _ in places)
    top = max(y for _, y in places) or 1.0
    room = _HEIGHT - _BELOW - _ABOVE

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low) / ((high - low) or 1) * _WIDTH
        return round(across, 1), round(_ABOVE + (1 - y / top) * room, 1)

    def path(line: Line) -> dict[str, Any]:
        text = "M" + "L".join(f"{x} {y}" for x, y in (place(*point) for point in line.points))
        (first, _), (last, _) = place(*line.points[0]), place(*line.points[-1])
        below = f"L{last} {_ABOVE + room}L{first} {_ABOVE + room}Z" if line.filled else ""
        return {"path": text, "below": below, "dashed": line.dashed}

    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "label": drawing.label,
        "left": drawing.left,
        "right": drawing.right,
        "dots": [place(*dot) for dot in drawing.dots],
        "lines": [path(line) for line in drawing.lines],
    }


def _rendered(**context: Any) -> str:
    # jinja2 takes a tenth of a second to import, which most commands have no use for
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("glance.html").render(**context)
