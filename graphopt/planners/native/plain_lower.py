"""Evictions at the highest steps: values freed between two reads and computed again, the cheapest first."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from graphopt.planners.native.plain_copies import Copy, copies_of
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import simulate

#: Share of a value's bytes that keeping one of its op's inputs for it may take.
SMALL_INPUT = 0.25
#: Ops that are looked at in search of evictions: a number for each op of the problem, and some more.
WORK, LEAST_WORK = 6, 1000


@dataclass(frozen=True, slots=True)
class _Eviction:
    """A value freed after step `start` until step `stop`; the ops that run again right before that."""

    value: int
    start: int
    stop: int
    again: frozenset[int]
    freed_bytes: int


class _Pricer:
    """Says what must run again for a value to be there, on one schedule, for one target."""

    def __init__(self, problem: Problem, schedule: list[int], target_bytes: int, longest: int) -> None:
        self.problem, self.target_bytes, self.longest = problem, target_bytes, longest
        self.memory = simulate(problem, schedule).live_bytes
        self.copies = copies_of(problem, schedule)
        self.looked_at = 0

    def eviction(self, value: int, start: int, stop: int) -> _Eviction | None:
        """None if it frees nothing or cannot be undone."""
        problem, freed_bytes = self.problem, self.problem.values[value].bytes
        again: set[int] = set()
        stack = [value]
        while stack:
            op_id = problem.producer[stack.pop()]
            if op_id in again:
                continue
            if not problem.ops[op_id].recomputable or len(again) > self.longest:
                return None
            again.add(op_id)
            self.looked_at += 1
            for needed in problem.ops[op_id].inputs:
                if problem.producer[needed] < 0 or problem.producer[needed] in again:
                    continue
                last = self._copy_at(needed, stop).last
                if last >= stop:
                    continue
                if self._can_stay(problem.values[needed].bytes, last, value, start, stop):
                    freed_bytes -= problem.values[needed].bytes
                else:
                    stack.append(needed)
        return _Eviction(value, start, stop, frozenset(again), freed_bytes) if freed_bytes > 0 else None

    def _copy_at(self, value: int, stop: int) -> Copy:
        """The copy that a reader at step `stop` would find."""
        copies = self.copies[value]
        return copies[bisect_left(copies, stop, key=lambda copy: copy.born) - 1]

    def _can_stay(self, size: int, last: int, value: int, start: int, stop: int) -> bool:
        """Whether `size` bytes can stay from after `last` until `stop`, in the room that the evicted value makes."""
        freed, memory = self.problem.values[value].bytes, self.memory
        if int(memory[last + 1 : start + 1].max(initial=0)) + size > self.target_bytes:
            return False
        inside = int(memory[max(last, start) + 1 : stop].max(initial=0))
        return size <= SMALL_INPUT * freed or inside - freed + size <= self.target_bytes


def lower(
    problem: Problem, held: frozenset[int], schedule: list[int], target_bytes: int, moves: int, longest: int
) -> list[int] | None:
    """The schedule with up to `moves` more evictions at steps over the target; None where none would help.

    Those first that cost the fewest seconds for the bytes and steps over the target that they cover. A
    schedule is seen as intervals for which values are retained (Bartan et al., Moccasin, ICML 2023,
    section 2), with a greedy in the place of constraint programming.
    """
    pricer = _Pricer(problem, schedule, target_bytes, longest)
    over = [0, *np.cumsum(pricer.memory > target_bytes).tolist()]
    excess = int(pricer.memory.max()) - target_bytes

    def rate(value: int, start: int, stop: int, seconds: float, freed_bytes: int) -> tuple[float, int, int]:
        return seconds / (min(freed_bytes, excess) * (over[stop] - over[start + 1])), value, start

    gaps = [
        (rate(copy.value, start, stop, problem.ops[maker].seconds, problem.values[copy.value].bytes), stop)
        for maker, copies in zip(problem.producer, pricer.copies, strict=True)
        for copy in copies
        if copy.value not in held and problem.values[copy.value].bytes
        for start, stop in zip([copy.born, *copy.readers], copy.readers, strict=False)
        if over[stop] > over[min(start + 1, stop)]
    ]
    found: list[tuple[tuple[float, int, int], _Eviction]] = []
    for (_, value, start), stop in sorted(gaps):
        if pricer.looked_at > WORK * len(problem.ops) + LEAST_WORK:
            break
        eviction = pricer.eviction(value, start, stop)
        if eviction is not None:
            seconds = sum(problem.ops[op_id].seconds for op_id in eviction.again)
            found.append((rate(value, start, stop, seconds, eviction.freed_bytes), eviction))
    found.sort(key=lambda pair: pair[0])
    return _made(problem, schedule, pricer, [eviction for _, eviction in found], moves)


def _made(
    problem: Problem, schedule: list[int], pricer: _Pricer, evictions: list[_Eviction], moves: int
) -> list[int] | None:
    """The first of the evictions that are still needed; a value that one of them computes from stays."""
    memory, again_at, relied_on, made = pricer.memory.copy(), dict[int, set[int]](), set[int](), 0
    for eviction in evictions:
        between = memory[eviction.start + 1 : eviction.stop]
        if made < moves and eviction.value not in relied_on and int(between.max()) > pricer.target_bytes:
            between -= eviction.freed_bytes
            again_at.setdefault(eviction.stop, set()).update(eviction.again)
            relied_on.update(v for op_id in eviction.again for v in problem.ops[op_id].inputs)
            made += 1
    if not made:
        return None
    count = len(schedule)
    return [
        op_id for step in range(count + 1) for op_id in (*sorted(again_at.get(step, ())), *schedule[step : step + 1])
    ]
