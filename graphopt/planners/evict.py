"""From a schedule downwards: at the steps over a target, free values between two reads and compute them again."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.planners.curve import CurvePoint
from graphopt.planners.fill import fill_under
from graphopt.planners.floor import practical_floor
from graphopt.planners.replay import held_values
from graphopt.planners.timeline import Timeline
from graphopt.problem import Problem

#: Share of a value's bytes that keeping one of its op's inputs for it may take.
SMALL_INPUT = 0.25
#: Ops that one eviction may ask to run again.
LONGEST = 100
#: Attempts in a row that may lower nothing, and the seconds, in those of a step, beyond which going on is hopeless.
PATIENCE, GIVE_UP = 4, 3.0


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

    def gaps(self) -> npt.NDArray[np.int64]:
        """`(value, start, stop)` of each stretch between two reads in which something could be freed."""
        held = held_values(self.line.problem)
        found: list[tuple[int, int, int]] = []
        for step, outputs in enumerate(self.line.readers):
            for value, readers in outputs.items():
                start = step
                if value not in held:
                    for stop in readers:
                        if stop - start > 1:
                            found.append((value, start, stop))
                        start = stop
        return np.array(found, dtype=np.int64).reshape(-1, 3)

    def candidates(self) -> Iterator[_Eviction]:
        """Evictions at steps over the target, those first that cost least per byte and step.

        An eviction costs at least its own op, so it is priced only when its turn has come by that.
        """
        line = self.line
        over = np.concatenate([[0], np.cumsum(line.memory > self.target)])
        excess = int(line.memory.max()) - self.target
        gaps = self.gaps()
        covered = over[gaps[:, 2]] - over[gaps[:, 1] + 1]
        heap: list[tuple[float, int, _Eviction | None]] = []
        for row in np.flatnonzero(covered).tolist():
            value = int(gaps[row, 0])
            if line.size[value]:
                own = line.problem.ops[line.problem.producer[value]].seconds
                heap.append((own / (min(line.size[value], excess) * float(covered[row])), row, None))
        heapq.heapify(heap)
        while heap:
            _, row, priced = heapq.heappop(heap)
            if priced is not None:
                yield priced
                continue
            found = self.price(*gaps[row].tolist())
            if found is not None:
                cost = found.seconds / (min(found.net_bytes, excess) * float(covered[row]))
                heapq.heappush(heap, (cost, row, found))

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
            if not problem.ops[maker].recomputable or len(again) > LONGEST:
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
        if last < start and int(np.maximum.reduce(memory[last + 1 : start + 1])) + size > self.target:
            return False
        if size <= SMALL_INPUT * freed:
            return True
        inside = memory[max(last, start) + 1 : stop]
        return not len(inside) or int(np.maximum.reduce(inside)) - freed + size <= self.target


def lower(line: Timeline, target: int, moves: int) -> list[int] | None:
    """The schedule with up to `moves` more evictions; None where none would help."""
    memory = line.memory.copy()
    before: dict[int, set[int]] = {}
    relied_on: set[int] = set()
    made = 0
    for found in Evictor(line, target).candidates():
        span = memory[found.start + 1 : found.stop]
        if found.value in relied_on or int(np.maximum.reduce(span)) <= target:
            continue
        span -= found.net_bytes
        before.setdefault(found.stop, set()).update(found.again)
        for op_id in found.again:
            relied_on.update(line.problem.ops[op_id].inputs)
        made += 1
        if made >= moves or int(memory.max()) <= target:
            break
    if not made:
        return None
    schedule: list[int] = []
    for step, op_id in enumerate(line.steps):
        schedule.extend(sorted(before.get(step, ())))
        schedule.append(op_id)
    schedule.extend(sorted(before.get(len(line.steps), ())))
    return schedule


def descend(problem: Problem, schedule: Sequence[int], planner: str, ratio: float, until: int = 0) -> list[CurvePoint]:
    """Schedules of ever less memory down to `until` bytes, each target `ratio` of the peak before.

    What fits again under a target once it is reached is kept again.
    """
    line, floor = Timeline(problem, schedule), practical_floor(problem)
    found: list[CurvePoint] = []
    least = line.peak_bytes
    while least > max(floor, until):
        target = max(int(least * ratio), floor)
        reached = _reach(line, target)
        found.extend(step.point(planner) for step in reached)
        if not reached or reached[-1].peak_bytes > target:
            break
        line = fill_under(reached[-1], target)
        found.append(line.point(planner))
        least = line.peak_bytes
    return found


def _reach(line: Timeline, target: int) -> list[Timeline]:
    """Timelines of ever less memory, the last one under `target` if that can be reached."""
    problem, least = line.problem, line.peak_bytes
    moves = 8 + len(problem.ops) // 20
    found: list[Timeline] = []
    patience = PATIENCE
    while least > target and patience and line.seconds < GIVE_UP * problem.seconds:
        lowered = lower(line, target, moves)
        if lowered is None:
            break
        line = Timeline(problem, lowered)
        patience -= 1
        if line.peak_bytes < least:
            least, patience = line.peak_bytes, PATIENCE
            found.append(line)
    return found
