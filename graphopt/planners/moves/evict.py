"""From a schedule downwards: at the steps over a target, free values between two reads and compute them again.

A schedule is seen as intervals for which values are retained, as in Bartan et al., Moccasin (ICML 2023),
section 2; here any number of them a value, and a greedy in the place of constraint programming.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from graphopt.planners.curves.curve import CurvePoint
from graphopt.planners.moves.fill import fill_under
from graphopt.planners.native import native_for
from graphopt.planners.schedules.floor import practical_floor
from graphopt.planners.schedules.layout import Ints
from graphopt.planners.schedules.spans import Spans, highest
from graphopt.problem.problem import Problem

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

    __slots__ = ("again", "covered", "most", "net_bytes", "seconds", "stack", "start", "stop", "value")

    def __init__(self, value: int, start: int, stop: int, size: int, covered: int, most: float) -> None:
        self.value, self.start, self.stop = value, start, stop
        #: Steps over the target in between, and the bytes and steps that are gained at most.
        self.covered, self.most = covered, most
        #: Ops known to be needed before `stop`, their seconds, and the bytes that are freed.
        self.again: set[int] = set()
        self.seconds, self.net_bytes = 0.0, size
        self.stack = [value]


class Evictor:
    """Prices evictions on one schedule, for one target."""

    def __init__(self, spans: Spans, target: int, longest: int = LONGEST) -> None:
        self.spans, self.problem, self.target, self.longest = spans, spans.problem, target, longest
        self.memory = spans.memory
        self.size, self.reads = spans.layout.sizes, spans.layout.reads
        self.last: list[int] = spans.cells.last.tolist()
        self.cell_at: list[int] = spans.cells.at.tolist()
        above = spans.memory > target
        #: The steps over the target, and for each step how many before it are.
        self.steps_over: list[int] = np.flatnonzero(above).tolist()
        self.over: list[int] = [0, *np.cumsum(above).tolist()]
        #: Steps by op; those of op `i` begin at `run_at[i]`.
        self.runs: list[int] = spans.runs.tolist()
        self.run_at: list[int] = [0, *np.cumsum(np.bincount(spans.op, minlength=len(self.problem.ops))).tolist()]
        #: Values that may still be looked at.
        self.patience = WORK * len(self.problem.ops) + LEAST_WORK

    def candidates(self, wanted: Callable[[_Quote], bool]) -> Iterator[_Quote]:
        """Evictions at steps over the target, those first that cost least per byte and step.

        Pricing is what takes time, so an eviction is priced only as far as its turn has come: until
        then the seconds of those ops that it is known to need stand for its price. One that is not
        `wanted` at its turn is not priced at all.
        """
        values, starts, stops = self.spans.gaps()
        over, layout = np.array(self.over), self.spans.layout
        covered = over[stops] - over[starts + 1]
        useful = np.flatnonzero(covered)
        values, starts, stops, covered = values[useful], starts[useful], stops[useful], covered[useful]
        excess = self.spans.peak_bytes - self.target
        most = np.minimum(layout.size[values], excess) * covered.astype(np.float64)
        bounds = layout.seconds[layout.producer[values]] / most
        order = np.argsort(bounds, kind="stable")
        fresh = zip(bounds[order].tolist(), order.tolist(), strict=True)
        # The next one that was not looked at yet, and those that were.
        heap: list[tuple[float, int]] = list(islice(fresh, 1))
        quotes: dict[int, _Quote] = {}
        while heap and self.patience > 0:
            bound, row = heapq.heappop(heap)
            quote = quotes.get(row)
            if quote is None:
                value = int(values[row])
                quote = _Quote(
                    value, int(starts[row]), int(stops[row]), self.size[value], int(covered[row]), float(most[row])
                )
                quotes[row] = quote
                for following in islice(fresh, 1):
                    heapq.heappush(heap, following)
            elif not quote.stack:
                yield quote
                continue
            if not wanted(quote):
                continue
            allowed = max(4 * bound, heap[0][0] if heap else math.inf) * quote.most
            if not self.price(quote, allowed):
                continue
            gain = quote.most if quote.stack else min(quote.net_bytes, excess) * quote.covered
            heapq.heappush(heap, (quote.seconds / gain, row))

    def price(self, quote: _Quote, allowed: float) -> bool:
        """Follow up what must run before `quote.stop`, until its seconds exceed `allowed`.

        False if the eviction frees nothing or cannot be undone.
        """
        ops, producer, reads, fits = self.problem.ops, self.problem.producer, self.reads, self.fits
        runs, run_at, last_of, cell_at, over = self.runs, self.run_at, self.last, self.cell_at, self.over
        again, stack, start, stop = quote.again, quote.stack, quote.start, quote.stop
        freed, over_before = self.size[quote.value], over[start + 1]
        while stack:
            if quote.seconds > allowed:
                return True
            maker = producer[stack.pop()]
            if maker in again:
                continue
            op = ops[maker]
            if not op.recomputable or len(again) > self.longest:
                return False
            again.add(maker)
            quote.seconds += op.seconds
            self.patience -= len(op.inputs)
            for needed, source, slot, size in reads[maker]:
                if source in again:
                    continue
                # The last read of `needed` as it was last produced before `stop`.
                first, end = run_at[source], run_at[source + 1]
                run = runs[bisect_left(runs, stop, first, end) - 1] if end - first > 1 else runs[first]
                last = last_of[cell_at[run] + slot]
                if last >= stop:
                    continue
                if last < start and over_before > over[last + 1]:
                    stack.append(needed)
                elif fits(size, last, start, stop, freed):
                    quote.net_bytes -= size
                else:
                    stack.append(needed)
        return quote.net_bytes > 0

    def fits(self, size: int, last: int, start: int, stop: int, freed: int) -> bool:
        """Whether so many bytes can stay after `last` until `stop`, in the room that those freed at `start` make."""
        memory = self.memory
        if last < start and highest(memory[last + 1 : start + 1]) + size > self.target:
            return False
        if size <= SMALL_INPUT * freed or self.spans.peak_bytes - freed + size <= self.target:
            return True
        inside = memory[max(last, start) + 1 : stop]
        return not len(inside) or highest(inside) - freed + size <= self.target


def lower(line: Spans, target: int, moves: int, longest: int = LONGEST) -> Ints | None:
    """The schedule with up to `moves` more evictions; None where none would help."""
    native = native_for(line.problem)
    if native is not None:
        return native.lower(line.op, target, moves, longest)
    memory = line.memory.copy()
    evictor = Evictor(line, target, longest)
    steps_over, over = evictor.steps_over, evictor.over
    before: dict[int, set[int]] = {}
    relied_on: set[int] = set()
    made = reached = 0

    def wanted(quote: _Quote) -> bool:
        if quote.value in relied_on:
            return False
        if memory.item(steps_over[over[quote.start + 1]]) > target:
            return True
        return highest(memory[quote.start + 1 : quote.stop]) > target

    for found in evictor.candidates(wanted):
        if not wanted(found):
            continue
        memory[found.start + 1 : found.stop] -= found.net_bytes
        before.setdefault(found.stop, set()).update(found.again)
        for op_id in found.again:
            relied_on.update(line.problem.ops[op_id].inputs)
        made += 1
        # Memory only falls here: what is under the target stays there.
        while reached < len(steps_over) and memory.item(steps_over[reached]) <= target:
            reached += 1
        if made >= moves or reached == len(steps_over):
            break
    if not made:
        return None
    stops = sorted(before)
    again = [op_id for stop in stops for op_id in sorted(before[stop])]
    return np.insert(line.op, np.repeat(stops, [len(before[stop]) for stop in stops]), again)


def descend(
    problem: Problem,
    schedule: Sequence[int] | Ints,
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
