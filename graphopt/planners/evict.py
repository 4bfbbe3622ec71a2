"""From a schedule downwards: at the steps over a target, free values between two reads and compute them again.

A schedule is seen as intervals for which values are retained, as in Bartan et al., Moccasin (ICML 2023),
section 2; here any number of them a value, and a greedy in the place of constraint programming.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from graphopt.planners.curve import CurvePoint
from graphopt.planners.fill import fill_under
from graphopt.planners.floor import practical_floor
from graphopt.planners.spans import Spans
from graphopt.problem import Problem

#: Share of a value's bytes that keeping one of its op's inputs for it may take.
SMALL_INPUT = 0.25
#: Ops that one eviction may ask to run again, and where the lowest of all peaks is sought.
LONGEST, LONGEST_AT_LOWEST = 25, (25, 50)
#: Inputs that are looked at in search of one round's evictions: so many an op, and some more.
WORK, LEAST_WORK = 12, 2000
#: Attempts at one target, how many of them in a row may lower nothing, and the seconds, in those of a
#: step, beyond which going on is hopeless.
ATTEMPTS, PATIENCE, GIVE_UP = 12, 2, 3.0


class _Quote:
    """The price of freeing `value` after step `start` until `stop`, as far as it was followed up."""

    __slots__ = ("again", "net_bytes", "seconds", "stack", "start", "stop", "value")

    def __init__(self, value: int, start: int, stop: int, size: int) -> None:
        self.value, self.start, self.stop = value, start, stop
        #: Ops known to be needed before `stop`, their seconds, and the bytes that are freed.
        self.again: set[int] = set()
        self.seconds, self.net_bytes = 0.0, size
        self.stack = [value]


class Evictor:
    """Prices evictions on one schedule, for one target."""

    def __init__(self, spans: Spans, target: int, longest: int = LONGEST) -> None:
        self.spans, self.problem, self.target, self.longest = spans, spans.problem, target, longest
        self.memory = spans.memory
        self.size, self.slot = spans.layout.sizes, spans.layout.slots
        self.last: list[int] = spans.last.tolist()
        self.cell_at: list[int] = spans.cell_at.tolist()
        #: For each step how many before it are over the target.
        self.over: list[int] = [0, *np.cumsum(spans.memory > target).tolist()]
        self.runs: list[int] = spans.runs.tolist()
        self.run_key: list[int] = spans.run_key.tolist()
        #: Values that may still be looked at.
        self.patience = WORK * len(self.problem.ops) + LEAST_WORK

    def candidates(self, wanted: Callable[[int, int, int], bool]) -> Iterator[_Quote]:
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
        heap: list[tuple[float, int]] = list(zip(bounds.tolist(), range(len(useful)), strict=True))
        heapq.heapify(heap)
        quotes: dict[int, _Quote] = {}
        while heap and self.patience > 0:
            bound, row = heapq.heappop(heap)
            quote = quotes.get(row)
            if quote is not None and not quote.stack:
                yield quote
                continue
            value, start, stop = int(values[row]), int(starts[row]), int(stops[row])
            if not wanted(value, start, stop):
                continue
            quote = quotes.setdefault(row, _Quote(value, start, stop, self.size[value]))
            allowed = max(4 * bound, heap[0][0] if heap else math.inf) * float(most[row])
            if not self.price(quote, allowed):
                continue
            gain = float(most[row]) if quote.stack else min(quote.net_bytes, excess) * int(covered[row])
            heapq.heappush(heap, (quote.seconds / gain, row))

    def price(self, quote: _Quote, allowed: float) -> bool:
        """Follow up what must run before `quote.stop`, until its seconds exceed `allowed`.

        False if the eviction frees nothing or cannot be undone.
        """
        ops, producer = self.problem.ops, self.problem.producer
        again, stack, stop, width = quote.again, quote.stack, quote.stop, self.spans.length + 1
        while stack:
            if quote.seconds > allowed:
                return True
            maker = producer[stack.pop()]
            if maker in again:
                continue
            if not ops[maker].recomputable or len(again) > self.longest:
                return False
            again.add(maker)
            quote.seconds += ops[maker].seconds
            self.patience -= len(ops[maker].inputs)
            for needed in ops[maker].inputs:
                if producer[needed] < 0 or producer[needed] in again:
                    continue
                # The last read of `needed` as it was last produced before `stop`.
                run = self.runs[bisect_left(self.run_key, producer[needed] * width + stop) - 1]
                last = self.last[self.cell_at[run] + self.slot[needed]]
                if last >= stop:
                    continue
                if self.fits(needed, last, quote.value, quote.start, stop):
                    quote.net_bytes -= self.size[needed]
                else:
                    stack.append(needed)
        return quote.net_bytes > 0

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


def lower(line: Spans, target: int, moves: int, longest: int = LONGEST) -> list[int] | None:
    """The schedule with up to `moves` more evictions; None where none would help."""
    memory = line.memory.copy()
    before: dict[int, set[int]] = {}
    relied_on: set[int] = set()
    made = 0

    def wanted(value: int, start: int, stop: int) -> bool:
        return value not in relied_on and int(np.maximum.reduce(memory[start + 1 : stop])) > target

    for found in Evictor(line, target, longest).candidates(wanted):
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


def descend(
    problem: Problem,
    schedule: Sequence[int],
    planner: str,
    ratio: float,
    until: int = 0,
    nearer: int = 0,
    longest: int = LONGEST,
) -> list[CurvePoint]:
    """Schedules of ever less memory down to `until` bytes, each target `ratio` of the peak before.

    What fits again under a target once it is reached is kept again. Up to `nearer` times, where a
    target is too far, one nearer by is tried.
    """
    line, floor = Spans(problem, schedule), practical_floor(problem)
    found: list[CurvePoint] = []
    least = line.peak_bytes
    while least > max(floor, until):
        target = max(int(least * ratio), floor)
        reached = reach(line, target, longest)
        found.extend(step.point(planner) for step in reached)
        if reached and reached[-1].peak_bytes <= target:
            line = fill_under(reached[-1], target)
            found.append(line.point(planner))
        elif nearer:
            line = reached[-1] if reached else line
            ratio, nearer = 1 - (1 - ratio) / 3, nearer - 1
        else:
            break
        least = line.peak_bytes
    return found


def reach(line: Spans, target: int, longest: int = LONGEST) -> list[Spans]:
    """Schedules of ever less memory, the last one under `target` if that can be reached."""
    problem, least = line.problem, line.peak_bytes
    moves = 8 + len(problem.ops) // 20
    found: list[Spans] = []
    patience = PATIENCE
    for _ in range(ATTEMPTS):
        hopeless = not patience or line.seconds > GIVE_UP * problem.seconds
        lowered = None if hopeless else lower(line, target, moves, longest)
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
