"""From a schedule downwards: at the steps over a target, free values between two reads and compute them again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.planners.fill import fill_under
from graphopt.planners.timeline import Timeline
from graphopt.problem import Problem

#: Share of a value's bytes that keeping one of its op's inputs for it may take.
SMALL_INPUT = 0.25
#: Attempts at one target, and the seconds, in those of a step, beyond which going on is hopeless.
ROUNDS, GIVE_UP = 20, 3.0


@dataclass(frozen=True)
class _Eviction:
    """Free `value` after step `start` and run `again` before step `stop`."""

    value: int
    start: int
    stop: int
    again: frozenset[int]
    seconds: float
    net_bytes: int


class Evictor:
    """Prices evictions on one timeline, for one target."""

    def __init__(self, line: Timeline, target: int) -> None:
        self.line, self.target = line, target
        self.runs: list[list[int]] = [[] for _ in line.problem.ops]
        for step, op_id in enumerate(line.steps):
            self.runs[op_id].append(step)

    def candidates(self) -> list[_Eviction]:
        """Evictions at steps over the target, those first that cost least per byte and step."""
        line, ops = self.line, self.line.problem.ops
        over = np.concatenate([[0], np.cumsum(line.memory > self.target)])
        excess = int(line.memory.max()) - self.target
        scored: list[tuple[float, int, _Eviction]] = []
        for step, outputs in enumerate(line.readers):
            if not ops[line.steps[step]].recomputable:
                continue
            for value, readers in outputs.items():
                start = step
                for stop in readers:
                    covered = int(over[min(stop, len(line.steps))] - over[start + 1]) if stop > start + 1 else 0
                    if covered and stop < len(line.steps) and line.size[value]:
                        found = self.price(value, start, stop)
                        if found is not None:
                            gain = min(found.net_bytes, excess) * covered
                            scored.append((found.seconds / gain, len(scored), found))
                    start = stop
        return [found for _, _, found in sorted(scored)]

    def price(self, value: int, start: int, stop: int) -> _Eviction | None:
        """What must run before `stop`; None if the eviction frees nothing or cannot be undone."""
        line, problem = self.line, self.line.problem
        again: set[int] = set()
        seconds, net = 0.0, line.size[value]
        stack = [value]
        while stack:
            maker = problem.producer[stack.pop()]
            if maker in again:
                continue
            if not problem.ops[maker].recomputable or len(again) > 200:
                return None
            again.add(maker)
            seconds += problem.ops[maker].seconds
            for needed in problem.ops[maker].inputs:
                if problem.producer[needed] < 0 or problem.producer[needed] in again:
                    continue
                last = self.alive_until(needed, stop)
                if last >= stop:
                    continue
                if self.fits(needed, last, value, start, stop):
                    net -= line.size[needed]
                else:
                    stack.append(needed)
        if net <= 0:
            return None
        return _Eviction(value, start, stop, frozenset(again), seconds, net)

    def alive_until(self, value: int, stop: int) -> int:
        """Last read of `value` as it was last produced before `stop`."""
        runs = self.runs[self.line.problem.producer[value]]
        made = runs[bisect_left(runs, stop) - 1]
        readers = self.line.readers[made][value]
        return readers[-1] if readers else made

    def fits(self, needed: int, last: int, value: int, start: int, stop: int) -> bool:
        """Whether `needed` can stay until `stop` in the room that evicting `value` makes."""
        memory, size, freed = self.line.memory, self.line.size[needed], self.line.size[value]
        if last + 1 <= start and int(memory[last + 1 : start + 1].max()) + size > self.target:
            return False
        if size <= SMALL_INPUT * freed:
            return True
        inside: npt.NDArray[np.int64] = memory[max(last, start) + 1 : stop]
        return not len(inside) or int(inside.max()) - freed + size <= self.target


def lower(line: Timeline, target: int, moves: int) -> list[int] | None:
    """The schedule with up to `moves` more evictions; None where none would help."""
    memory = line.memory.copy()
    before: dict[int, set[int]] = {}
    relied_on: set[int] = set()
    made = 0
    for found in Evictor(line, target).candidates():
        span = memory[found.start + 1 : found.stop]
        if found.value in relied_on or not (span > target).any():
            continue
        span -= found.net_bytes
        before.setdefault(found.stop, set()).update(found.again)
        for op_id in found.again:
            relied_on.update(line.problem.ops[op_id].inputs)
        made += 1
        if made >= moves:
            break
    if not made:
        return None
    schedule: list[int] = []
    for step, op_id in enumerate(line.steps):
        schedule.extend(sorted(before.get(step, ())))
        schedule.append(op_id)
    return schedule


def descend(problem: Problem, schedule: Sequence[int], ratio: float, floor: int) -> list[list[int]]:
    """Schedules of ever less memory, each target `ratio` of the peak before; what fits under it is kept again."""
    line = Timeline(problem, schedule)
    found: list[list[int]] = []
    moves = 8 + len(problem.ops) // 20
    target = int(int(line.memory.max()) * ratio)
    while target > floor * ratio:
        for _ in range(ROUNDS):
            lowered = lower(line, max(target, floor), moves) if line.seconds < GIVE_UP * problem.seconds else None
            if lowered is None:
                return found
            line = Timeline(problem, lowered)
            if int(line.memory.max()) <= target:
                break
        else:
            return found
        line = fill_under(line, target)
        found.append(line.steps)
        target = int(int(line.memory.max()) * ratio)
    return found
