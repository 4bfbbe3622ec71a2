"""What a chain of regions does, one thing after the other, and the schedule that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphopt.planners.chains.regions import Regions
from graphopt.planners.native.arrays import Ints
from graphopt.planners.schedules.recompute import missing_ops
from graphopt.planners.study.study import Study


@dataclass(frozen=True)
class Action:
    """`reach` values, `forget` values, or `run` the ops of a region's backward."""

    kind: Literal["reach", "forget", "run"]
    items: list[int]


def performed(study: Study, regions: Regions, actions: Sequence[Action]) -> Ints:
    """The schedule: the forward once, and from then on what is missing computed before it is read.

    What a region's backward computed again of the forward is gone once it has run.
    """
    return np.array(_Performance(study, regions).schedule_of(actions), dtype=np.int64)


class _Performance:
    """What is alive, and the schedule so far."""

    def __init__(self, study: Study, regions: Regions) -> None:
        self.study, self.end = study, regions.end
        self.alive = set(regions.held)
        self.schedule: list[int] = []

    def schedule_of(self, actions: Sequence[Action]) -> list[int]:
        for action in actions:
            if action.kind == "reach":
                self.reach(action.items)
            elif action.kind == "forget":
                self.alive.difference_update(action.items)
            else:
                self.run(action.items)
        return self.schedule

    def reach(self, wanted: Sequence[int]) -> None:
        if self.schedule:
            self.schedule.extend(missing_ops(self.study, wanted, self.alive))
        else:
            self.schedule.extend(range(self.end))
        self.alive.update(wanted)

    def run(self, ops: Sequence[int]) -> None:
        problem_ops, reads, alive, schedule = self.study.problem.ops, self.study.reads, self.alive, self.schedule
        here: set[int] = set()
        for op_id in ops:
            if not alive.issuperset(reads[op_id]):
                for again in missing_ops(self.study, reads[op_id], alive):
                    here.update(set(problem_ops[again].outputs) - alive)
                    schedule.append(again)
                    alive.update(problem_ops[again].outputs)
            if op_id < self.end:
                here.update(set(problem_ops[op_id].outputs) - alive)
            schedule.append(op_id)
            alive.update(problem_ops[op_id].outputs)
        alive -= here
