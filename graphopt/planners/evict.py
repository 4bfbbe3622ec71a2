"""From a schedule downwards: at the steps over a target, free values between two reads and compute them again.

A schedule is seen as intervals for which values are retained, as in Bartan et al., Moccasin (ICML 2023),
section 2; here any number of them a value, and a greedy in the place of constraint programming.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from graphopt.planners.curve import CurvePoint
from graphopt.planners.fill import fill_under
from graphopt.planners.floor import practical_floor
from graphopt.planners.spans import Spans
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
    """Prices evictions on one schedule, for one target."""

    def __init__(self, spans: Spans, target: int) -> None:
        self.spans, self.problem, self.target = spans, spans.problem, target
        self.memory = spans.memory
        self.size, self.slot = spans.layout.sizes, spans.layout.slots
        self.last: list[int] = spans.last.tolist()
        self.cell_at: list[int] = spans.cell_at.tolist()
        #: For each step how many before it are over the target.
        self.over: list[int] = [0, *np.cumsum(spans.memory > target).tolist()]
        runs: list[int] = spans.runs.tolist()
        ends = np.cumsum(np.bincount(spans.op, minlength=len(self.problem.ops))).tolist()
        self.runs = [runs[a:b] for a, b in pairwise([0, *ends])]

    def candidates(self, wanted: Callable[[int, int, int], bool]) -> Iterator[_Eviction]:
        """Evictions at steps over the target, those first that cost least per byte and step.

        Pricing is what takes time, so an eviction is priced only as far as its turn has come: until
        then the seconds of those ops that it is known to need stand for its price. One that is not
        `wanted` at its turn, given value, start and stop, is not priced at all.
        """
        values, starts, stops = self.spans.gaps()
        over, layout = np.array(self.over), self.spans.layout
        covered = over[stops] - over[starts + 1]
        useful = np.flatnonzero(covered)
        values, starts, stops, covered = values[useful], starts[useful], stops[useful], covered[useful]
        excess = self.spans.peak_bytes - self.target
        most = np.minimum(layout.size[values], excess) * covered.astype(np.float64)
        bounds = layout.seconds[layout.producer[values]] / most
        heap: list[tuple[float, int, _Eviction | None]] = [(b, row, None) for row, b in enumerate(bounds.tolist())]
        heapq.heapify(heap)
        while heap:
            bound, row, priced = heapq.heappop(heap)
            if priced is not None:
                yield priced
                continue
            value, start, stop = int(values[row]), int(starts[row]), int(stops[row])
            if not wanted(value, start, stop):
                continue
            allowed = max(4 * bound, heap[0][0] if heap else math.inf) * float(most[row])
            found = self.price(value, start, stop, allowed)
            if isinstance(found, _Eviction):
                gain = min(found.net_bytes, excess) * int(covered[row])
                heapq.heappush(heap, (found.seconds / gain, row, found))
            elif found is not None:
                heapq.heappush(heap, (found / float(most[row]), row, None))

    def price(self, value: int, start: int, stop: int, allowed: float) -> _Eviction | float | None:
        """What must run before `stop`.

        Only the seconds so far where they exceed `allowed`; None if the eviction frees nothing or
        cannot be undone.
        """
        ops, producer = self.problem.ops, self.problem.producer
        again: set[int] = set()
        seconds, net = 0.0, self.size[value]
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
                # The last read of `needed` as it was last produced before `stop`.
                runs = self.runs[producer[needed]]
                last = self.last[self.cell_at[runs[bisect_left(runs, stop) - 1]] + self.slot[needed]]
                if last >= stop:
                    continue
                if self.fits(needed, last, value, start, stop):
                    net -= self.size[needed]
                else:
                    stack.append(needed)
        return _Eviction(value, start, stop, frozenset(again), seconds, net) if net > 0 else None

    def fits(self, needed: int, last: int, value: int, start: int, stop: int) -> bool:
        """Whether `needed` can stay until `stop` in the room that evicting `value` makes."""
        memory, size, freed = self.memory, self.size[needed], self.size[value]
        if last < start and self.over[start + 1] > self.over[last + 1]:
            return False
        if last < start and int(np.maximum.reduce(memory[last + 1 : start + 1])) + size > self.target:
            return False
        if size <= SMALL_INPUT * freed:
            return True
        if self.spans.peak_bytes - freed + size <= self.target:
            return True
        inside = memory[max(last, start) + 1 : stop]
        return not len(inside) or int(np.maximum.reduce(inside)) - freed + size <= self.target


def lower(line: Spans, target: int, moves: int) -> list[int] | None:
    """The schedule with up to `moves` more evictions; None where none would help."""
    memory = line.memory.copy()
    before: dict[int, set[int]] = {}
    relied_on: set[int] = set()
    made = 0

    def wanted(value: int, start: int, stop: int) -> bool:
        return value not in relied_on and int(np.maximum.reduce(memory[start + 1 : stop])) > target

    for found in Evictor(line, target).candidates(wanted):
        if not wanted(found.value, found.start, found.stop):
            continue
        memory[found.start + 1 : found.stop] -= found.net_bytes
        before.setdefault(found.stop, set()).update(found.again)
        for op_id in found.again:
            relied_on.update(line.problem.ops[op_id].inputs)
        made += 1
        if made >= moves or int(memory.max()) <= target:
            break
    if not made:
        return None
    schedule: list[int] = []
    steps: list[int] = line.op.tolist()
    done = 0
    for stop in sorted(before):
        schedule += steps[done:stop]
        schedule += sorted(before[stop])
        done = stop
    return schedule + steps[done:]


def descend(problem: Problem, schedule: Sequence[int], planner: str, ratio: float, until: int = 0) -> list[CurvePoint]:
    """Schedules of ever less memory down to `until` bytes, each target `ratio` of the peak before.

    What fits again under a target once it is reached is kept again.
    """
    line, floor = Spans(problem, schedule), practical_floor(problem)
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


def _reach(line: Spans, target: int) -> list[Spans]:
    """Schedules of ever less memory, the last one under `target` if that can be reached."""
    problem, least = line.problem, line.peak_bytes
    moves = 8 + len(problem.ops) // 20
    found: list[Spans] = []
    patience = PATIENCE
    for _ in range(ATTEMPTS):
        hopeless = not patience or line.seconds > GIVE_UP * problem.seconds
        lowered = None if hopeless else lower(line, target, moves)
        if lowered is None:
            break
        line = Spans(problem, lowered)
        patience -= 1
        if line.peak_bytes < least:
            least, patience = line.peak_bytes, PATIENCE
            found.append(line)
            if least <= target:
                break
    return found
