"""A schedule with the bytes that are alive at each of its steps: what the simulator says, in a tenth of its time.

Searching looks at some hundred schedules of a problem; each is measured here once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.planners.curves.curve import CurvePoint
from graphopt.planners.native.arrays import Ints
from graphopt.planners.study.study import Study, once_per_study


@dataclass(frozen=True, eq=False)
class MemoryProfile:
    """A schedule's op ids, the bytes alive while each step runs, their peak, and the seconds of all steps."""

    study: Study
    steps: Ints
    live_bytes: Ints
    peak_bytes: int
    seconds: float

    def point(self, planner: str) -> CurvePoint:
        """The schedule as a curve point."""
        return CurvePoint(self.peak_bytes, self.seconds, planner, self.steps)


def profile_of(study: Study, schedule: Sequence[int] | Ints) -> MemoryProfile:
    """Measure a valid schedule."""
    steps = np.ascontiguousarray(schedule, dtype=np.int64)
    return MemoryProfile(study, steps, *study.loops.profile(steps))


@once_per_study
def in_own_order(study: Study) -> MemoryProfile:
    """Every op once, in the problem's own order."""
    return profile_of(study, range(len(study.problem.ops)))


def point(study: Study, schedule: Sequence[int] | Ints, planner: str) -> CurvePoint:
    """The curve point of one schedule."""
    return profile_of(study, schedule).point(planner)
