"""A picture of many figures that lie near each other: dots on a line a run, from far below to far above."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _LEFT, _RIGHT, _TOP, _LINE, _BOTTOM = 760, 12, 12, 24, 46, 34
#: Nearer to nothing than this, all is drawn at the same place.
_LEAST = 1e-6
_TICKS = (-1e-2, -1e-3, -1e-4, -1e-5, 0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 0.5)


def dots(runs: Sequence[tuple[str, Sequence[float]]]) -> str:
    """One line a run, a dot a step: what was measured over what was predicted, in logarithms of the difference."""
    height = _TOP + _LINE * len(runs) + _BOTTOM
    parts = [tick(each, height) for each in _TICKS]
    for number, (title, ratios) in enumerate(runs):
        middle = _TOP + _LINE * number + 31
        parts.append(f'<text class="run" x="{_LEFT}" y="{middle - 15}">{escape(title)}</text>')
        for place, ratio in enumerate(ratios):
            lift = (place * 7 % 5 - 2) * 2.2
            shown = f'<circle class="{"above" if ratio > 1 else "below"}" cx="{across(1 - ratio):.1f}"'
            parts.append(f'{shown} cy="{middle + lift:.1f}" r="2.6"/>')
    parts.append(f'<text x="{_LEFT}" y="14">← the step took more</text>')
    parts.append(f'<text text-anchor="end" x="{_WIDTH - _RIGHT}" y="14">the step took less →</text>')
    label = "Every measured peak against its prediction"
    return f'<svg class="dots" role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} {height}">{"".join(parts)}</svg>'


def across(share: float) -> float:
    """The place of a share below (positive) or above its prediction: to the right it is below."""
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (far(share) - far(_TICKS[0])) / (far(_TICKS[-1]) - far(_TICKS[0]))


def far(share: float) -> float:
    return math.copysign(math.log10(1 + abs(share) / _LEAST), share)


def tick(share: float, height: int) -> str:
    name = "as predicted" if not share else f"{abs(share):.3%}".rstrip("0%").rstrip(".") + " %"
    kind = "middle" if not share else "tick"
    place = {_TICKS[0]: "start", _TICKS[-1]: "end"}.get(share, "middle")
    x, bottom = across(share), height - _BOTTOM
    line = f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>'
    return f'{line}<text class="scale" text-anchor="{place}" x="{x:.1f}" y="{bottom + 14}">{name}</text>'
