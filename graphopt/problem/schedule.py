"""Schedules, and the simulator that is their only judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.base.errors import ScheduleError
from graphopt.problem.problem import Problem

#: Op ids in the order in which they run; an id that comes twice is a recomputation.
Schedule = tuple[int, ...]


@dataclass(frozen=True)
class Simulation:
    """What a schedule costs: bytes alive while each step runs (workspace included), and time."""

    live_bytes: npt.NDArray[np.int64]
    seconds: float

    @property
    def peak_bytes(self) -> int:
        """The highest number of bytes alive at any step; 0 for an empty schedule."""
        return int(self.live_bytes.max(initial=0))

    @property
    def peak_step(self) -> int:
        """The first step at which the peak is reached."""
        return int(self.live_bytes.argmax())


def check_schedule(problem: Problem, schedule: Sequence[int]) -> Schedule:
    """Return the schedule as a tuple; raise ScheduleError, naming the step, if it is not valid.

    Valid: every op at least once, an op that is not recomputable exactly once, and every input
    produced before it is read.
    """
    if _is_valid(problem, schedule):
        return tuple(schedule)
    produced = [maker < 0 for maker in problem.producer]
    seen = [0] * len(problem.ops)
    for step, op_id in enumerate(schedule):
        if isinstance(op_id, bool) or not isinstance(op_id, int) or not 0 <= op_id < len(problem.ops):
            raise ScheduleError(f"step {step}: there is no op {op_id!r}; {len(problem.ops)} ops are given")
        op = problem.ops[op_id]
        if seen[op_id] and not op.recomputable:
            raise ScheduleError(f"step {step}: op {op_id} ({op.name!r}) must not be recomputed")
        for value in op.inputs:
            if not produced[value]:
                raise ScheduleError(f"step {step}: op {op_id} ({op.name!r}) reads value {value} before it is produced")
        seen[op_id] += 1
        for value in op.outputs:
            produced[value] = True
    missing = [op_id for op_id, count in enumerate(seen) if count == 0]
    if missing:
        raise ScheduleError(f"op {missing[0]} ({problem.ops[missing[0]].name!r}) is never run")
    return tuple(schedule)


def _is_valid(problem: Problem, schedule: Sequence[int]) -> bool:
    """Whether it is a valid schedule, without a word on why not: curves have a thousand of some thousand steps."""
    count = len(problem.ops)
    if not all(type(op_id) is int and 0 <= op_id < count for op_id in schedule):
        return False
    steps = np.array(schedule, dtype=np.int64)
    runs, first = np.bincount(steps, minlength=count), np.full(count, len(steps))
    first[steps[::-1]] = np.arange(len(steps))[::-1]
    if runs.min(initial=1) < 1 or (runs[~problem.is_recomputable] > 1).any():
        return False
    # what an op reads is there at each of its runs, if it is at the first
    makers, readers = problem.made_and_read
    return bool((first[makers] < first[readers]).all())


def runs_again(schedule: Sequence[int]) -> tuple[bool, ...]:
    """For each step whether its op has run before."""
    seen: set[int] = set()
    again = []
    for op in schedule:
        again.append(op in seen)
        seen.add(op)
    return tuple(again)


def lifetimes(problem: Problem, schedule: Sequence[int]) -> list[tuple[int, int, int]]:
    """`(value, first step, last step)` of each time a value is alive, both ends included.

    A value dies after its last read before it is next produced; an output lives to the end from
    the last time it is produced.
    """
    ends: list[tuple[int, int, int]] = []
    born: dict[int, int] = {}
    last: dict[int, int] = {}
    for step, op_id in enumerate(schedule):
        op = problem.ops[op_id]
        for value in op.inputs:
            if value in born:
                last[value] = step
        for value in op.outputs:
            if value in born:
                ends.append((value, born[value], last[value]))
            born[value] = last[value] = step
    for value in problem.outputs:
        if value in born:
            last[value] = len(schedule) - 1
    ends.extend((value, born[value], last[value]) for value in born)
    return ends


def simulate(problem: Problem, schedule: Sequence[int]) -> Simulation:
    """Replay `schedule`: exact live bytes at every step, and total time.

    Live while a step runs: every value that was produced and is still to be read (or is an
    output), the step's own outputs, and its workspace. The schedule must be valid
    (`check_schedule`).
    """
    change = np.zeros(len(schedule) + 1, dtype=np.int64)
    spans = lifetimes(problem, schedule)
    if spans:
        value, first, last = np.array(spans, dtype=np.int64).T
        size = np.array([v.bytes for v in problem.values], dtype=np.int64)[value]
        np.add.at(change, first, size)
        np.add.at(change, last + 1, -size)
    live = np.cumsum(change)[:-1]
    ops = problem.ops
    live += np.fromiter((ops[i].workspace_bytes for i in schedule), dtype=np.int64, count=len(schedule))
    return Simulation(live, math.fsum(ops[i].seconds for i in schedule))
