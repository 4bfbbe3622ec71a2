"""Points of the memory/time curve, and the choice among them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from graphopt.base.errors import InfeasibleError
from graphopt.planners.native.arrays import Ints
from graphopt.problem.schedule import Schedule

#: A faster point has to be faster by more than rounding, or the curve would not be monotone under `simulate`.
LEAST_GAIN = 1e-9


@dataclass(frozen=True, eq=False)
class CurvePoint:
    """One schedule and its price, as the simulator gives it.

    The schedule is `base` without those steps that had gone when `kept_until` was reached: a
    trajectory of a thousand points then costs the bytes of one schedule.
    """

    peak_bytes: int
    seconds: float
    planner: str
    base: Ints
    gone_at: Ints | None = None
    move: int = 0

    @property
    def steps(self) -> Ints:
        """Op ids in the order in which they run."""
        return self.base if self.gone_at is None else self.base[self.gone_at > self.move]

    @property
    def schedule(self) -> Schedule:
        """The same as a tuple, made each time that it is asked for."""
        return tuple(self.steps.tolist())


Curve = tuple[CurvePoint, ...]


class PricedPoint(Protocol):
    """Whatever takes so many bytes and seconds."""

    @property
    def peak_bytes(self) -> int:
        """The most that is allocated at once."""

    @property
    def seconds(self) -> float:
        """How long all of it takes."""


Point = TypeVar("Point", bound=PricedPoint)


def pareto(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other one beats: peaks increase, seconds decrease by more than `LEAST_GAIN`, a fraction."""
    best: list[Point] = []
    fastest = math.inf
    for candidate in sorted(points, key=lambda p: (p.peak_bytes, p.seconds)):
        if candidate.seconds < fastest * (1 - LEAST_GAIN) or not best:
            best.append(candidate)
            fastest = candidate.seconds
    return tuple(best)


def at_most(curve: Curve, most_bytes: float) -> CurvePoint:
    """The fastest point of a curve in `most_bytes`; there must be one."""
    return curve[bisect_right(curve, most_bytes, key=lambda p: p.peak_bytes) - 1]


def with_points(curve: Curve, points: Iterable[CurvePoint]) -> Curve:
    """`pareto` of a Pareto curve and a few more points, in less time; the same curve where it beats them all."""
    best, changed = list(curve), False
    for new in points:
        place = bisect_right(best, new.peak_bytes, key=lambda p: p.peak_bytes)
        if place and new.seconds >= best[place - 1].seconds * (1 - LEAST_GAIN):
            continue
        first = place - 1 if place and best[place - 1].peak_bytes == new.peak_bytes else place
        end = place
        while end < len(best) and best[end].seconds >= new.seconds * (1 - LEAST_GAIN):
            end += 1
        best[first:end] = [new]
        changed = True
    return tuple(best) if changed else curve


def pick(curve: Curve, budget_bytes: int) -> Schedule:
    """The fastest schedule of a Pareto curve that fits; raises InfeasibleError where none does."""
    fitting = [p for p in curve if p.peak_bytes <= budget_bytes]
    if not fitting:
        raise InfeasibleError(budget_bytes, curve[0].peak_bytes)
    return fitting[-1].schedule
