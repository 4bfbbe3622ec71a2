"""Schedules of a graph that serves many sizes: planned at some of them, judged at each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from graphopt.planners.native.arrays import Ints
from graphopt.problem.schedule import Schedule

#: Schedules that one planning adds: a curve of a thousand ops has some hundreds of points.
MOST_ADDED = 64
#: Times that planners were asked of which schedules are kept, the oldest go: each is judged at every new size.
_MOST_PLANNED = 8
#: Planners are asked anew at a size where eager takes more or less than at all before by this factor.
_FACTOR = 2.0
#: A schedule for which there is code is taken where it is slower than the fastest by no more than this share.
_SLOWER = 0.02


@dataclass(eq=False)
class SchedulePool:
    """What was planned for one graph. `at_hand` are the schedules for which there is code."""

    at_hand: dict[Schedule, None] = field(default_factory=dict)
    #: The least and the largest sizes of inputs, by name, that a schedule was chosen for.
    served: dict[Schedule, dict[str, tuple[int, int]]] = field(default_factory=dict)
    #: Planner and schedule, and the schedule as it is simulated.
    planned: list[tuple[str, Schedule, Ints]] = field(default_factory=list)
    #: Eager's peaks at the sizes that planners were asked for, and how many schedules that added.
    _asked: list[tuple[int, int]] = field(default_factory=list)

    def is_near(self, eager_bytes: int) -> bool:
        """Whether planners were asked at a size where eager takes about as much."""
        return any(max(known, eager_bytes) < _FACTOR * min(known, eager_bytes) for known, _ in self._asked)

    def is_planned(self, eager_bytes: int) -> bool:
        """Whether planners were asked at a size where eager takes just as much."""
        return any(eager_bytes == known for known, _ in self._asked)

    def add(self, eager_bytes: int, planned: list[tuple[str, Schedule]]) -> None:
        """Planners were asked: (planner, schedule), `MOST_ADDED` at the most."""
        known = {schedule for _, schedule, _ in self.planned}
        new = [(planner, schedule) for planner, schedule in planned if schedule not in known]
        self.planned += [(planner, schedule, np.array(schedule, dtype=np.int64)) for planner, schedule in new]
        self._asked.append((eager_bytes, len(new)))
        if len(self._asked) > _MOST_PLANNED:
            _, oldest = self._asked.pop(0)
            del self.planned[:oldest]
            kept = self.at_hand.keys() | {schedule for _, schedule, _ in self.planned}
            self.served = {schedule: sizes for schedule, sizes in self.served.items() if schedule in kept}

    def serves(self, schedule: Schedule, sizes: Mapping[str, int]) -> None:
        """A schedule was chosen for these sizes of inputs, by name."""
        before = self.served.get(schedule, {})
        now = {name: (*before.get(name, ()), size) for name, size in sizes.items()}
        self.served[schedule] = {name: (min(each), max(each)) for name, each in now.items()}

    def is_as_good(self, schedule: Schedule, seconds: float, fastest: float) -> bool:
        """Whether a schedule is to be taken in place of the fastest one, as there is code for it."""
        return schedule in self.at_hand and seconds <= fastest * (1 + _SLOWER)
