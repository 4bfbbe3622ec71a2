"""The memory/time curve as it is kept with a plan: few points, each schedule as runs of op ids.

A schedule is mostly op ids that count up by one, so `(0, 1, 2, 3, 7, 8, 4)` is kept as "0-3 7-8 4".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from graphopt.base.errors import PlanMismatchError
from graphopt.problem.schedule import Schedule

#: A kept plan is untrusted: no run may ask for more memory than a schedule of this many steps.
MOST_STEPS = 2**24

_RUN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


class Priced(Protocol):
    """A point of a curve."""

    @property
    def seconds(self) -> float:
        """Predicted time of its schedule."""
        ...


Point = TypeVar("Point", bound=Priced)


def runs_of(schedule: Schedule) -> str:
    """A schedule as text: runs of consecutive op ids, in order."""
    if not schedule:
        return ""
    steps = np.fromiter(schedule, np.int64, len(schedule))
    ends = np.flatnonzero(np.diff(steps) != 1)
    firsts, lasts = steps[[0, *(ends + 1)]].tolist(), steps[[*ends, -1]].tolist()
    return " ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in zip(firsts, lasts, strict=True))


def schedule_of(runs: str) -> Schedule:
    """The schedule that `runs_of` wrote; raises PlanMismatchError where the text is not such."""
    steps: list[int] = []
    for run in runs.split(" ") if runs else ():
        found = _RUN.fullmatch(run)
        if found is None:
            raise PlanMismatchError(f"a kept schedule has {run[:40]!r} where a run of op ids is expected")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or len(steps) + last - first >= MOST_STEPS:
            raise PlanMismatchError(f"a kept schedule has the run {run!r}, which counts down or is too long")
        steps.extend(range(first, last + 1))
    return tuple(steps)


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` (two or more) of the points of a Pareto curve, slowest and fastest among them.

    A point may be left out where the next slower one that is kept takes at most `ratio` times its
    seconds, and `ratio` is the least for which few enough are kept: so much dearer can a budget be
    than on the whole curve.
    """
    if len(points) <= most:
        return list(points)
    low, high = 1.0, points[0].seconds / points[-1].seconds
    for _ in range(60):
        ratio = (low + high) / 2
        low, high = (low, ratio) if len(_apart(points, ratio)) <= most else (ratio, high)
    return _apart(points, high)


def _apart(points: Sequence[Point], ratio: float) -> list[Point]:
    """From the slowest point on, each time the first one that is faster by more than `ratio`; and the fastest."""
    kept = [points[0]]
    for point in points[1:-1]:
        if kept[-1].seconds > ratio * point.seconds:
            kept.append(point)
    return [*kept, points[-1]]
