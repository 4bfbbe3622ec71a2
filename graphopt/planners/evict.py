"""From a schedule downwards: at the steps over a target, free values between two reads and compute them again.

A schedule is seen as intervals for which values are retained, as in Bartan et al., Moccasin (ICML 2023),
section 2; here any number of them a value, and a greedy in the place of constraint programming.
"""

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
LONGEST = 50
#: Attempts at one target, how many of them in a row may lower nothing, and the seconds, in those of a
#: step, beyond which going on is hopeless.
ATTEMPTS, PATIENCE, GIVE_UP = 12, 4, 3.0


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
        #: For each step how many before it are over the target.
        self.over: list[int] = [0, *np.cumsum(line.memory > target).tolist()]
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

        Pricing is what takes time, so an eviction is priced only as far as its turn has come: until
        then the seconds of those ops that it is known to need stand for its price.
        """
        line, producer = self.line, self.line.problem.producer
        excess = line.peak_bytes - self.target
        gaps = self.gaps()
        over = np.array(self.over)
        covered = (over[gaps[:, 2]] - over[gaps[:, 1] + 1]).astype(np.float64)
        heap: list[tuple[float, int, _Eviction | None]] = []
        for row in np.flatnonzero(covered).tolist():
            value = int(gaps[row, 0])
            if line.size[value]:
                least = line.problem.ops[producer[value]].seconds
                heap.append((least / (min(line.size[value], excess) * covered[row]), row, None))
        heapq.heapify(heap)
        while heap:
            bound, row, priced = heapq.heappop(heap)
            if priced is not None:
                yield priced
                continue
            value, start, stop = gaps[row].tolist()
            most = min(line.size[value], excess) * covered[row]
            allowed = max(4 * bound, heap[0][0] if heap else np.inf) * most
            found = self.price(value, start, stop, allowed)
            if isinstance(found, _Eviction):
                gain = min(found.net_bytes, excess) * covered[row]
                heapq.heappush(heap, (found.seconds / gain, row, found))
            elif found is not None:
                heapq.heappush(heap, (found / most, row, None))

    def price(self, value: int, start: int, stop: int, allowed: float) -> _Eviction | float | None:
        """What must run before `stop`.

        Only the seconds so far where they exceed `allowed`; None if the eviction frees nothing or
        cannot be undone.
        """
        line, ops, producer = self.line, self.line.problem.ops, self.line.problem.producer
        again: set[int] = set()
        seconds, net = 0.0, line.size[value]
        stack = [value]
        while stack:
            maker = producer[stack.pop()]
            if maker in again:
                continue
            if not ops[maker].recomputable or len(again) > LONGEST:
                return None
            again.add(maker)
            seconds += ops[maker].seconds
            if seconds > allowed:
                return seconds
            for needed in ops[maker].inputs:
                if producer[needed] < 0 or producer[needed] in again:
                    continue
                last = self.alive_until(needed, stop)
                if last >= stop:
                    continue
                if self.fits(needed, last, value, start, stop):
                    net -= line.size[needed]
                else:
                    stack.append(needed)
        return _Eviction(value, start, stop, frozenset(again), seconds, net) if net > 0 else None

    def alive_until(self, value: int, stop: int) -> int:
        """Last read of `value` as it was last produced before `stop`."""
        runs = self.runs[self.line.problem.producer[value]]
        made = runs[bisect_left(runs, stop) - 1]
        readers = self.line.readers[made][value]
        return readers[-1] if readers else made

    def fits(self, needed: int, last: int, value: int, start: int, stop: int) -> bool:
        """Whether `needed` can stay until `stop` in the room that evicting `value` makes."""
        memory, size, freed = self.line.memory, self.line.size[needed], self.line.size[value]
        if last < start and self.over[start + 1] > self.over[last + 1]:
            return False
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
    for _ in range(ATTEMPTS):
        hopeless = not patience or line.seconds > GIVE_UP * problem.seconds
        lowered = None if hopeless else lower(line, target, moves)
        if lowered is None:
            break
        line = Timeline(problem, lowered)
        patience -= 1
        if line.peak_bytes < least:
            least, patience = line.peak_bytes, PATIENCE
            found.append(line)
            if least <= target:
                break
    return found
