"""Exact inside large problems: some ops' recomputations decided anew, all else as it is.

A large neighbourhood search (Shaw 1998) whose neighbourhood is a few stretches of ops: each time the solver
decides when these run again, and until when their values stay, with the room that the rest leaves.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from importlib.util import find_spec

from graphopt.planners.retention.solve import Effort, Question, solve
from graphopt.planners.retention.window import may_run_again, window
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule, simulate

#: Ops decided at a time, and the most stretches that they come from.
OPS, STRETCHES = 36, 3
#: Seconds that one window is given, and those that one takes on average.
MOST_SECONDS, MEAN_SECONDS = 4.0, 1.0
#: Times the limit after which the clock ends it all.
PATIENCE = 2.0


def improve_windows(
    problem: Problem, schedule: Schedule, budget_bytes: int, limit_seconds: float, seed: int = 0
) -> Schedule:
    """A schedule inside `budget_bytes` that is no slower than `schedule`, which must be inside it.

    First runs keep the order that they have there. `limit_seconds` says how many windows are tried; the
    same number gives the same schedule, on a machine that is not much slower than the one for which
    the solver's work is counted. Without the extra `exact` that is `schedule` itself.
    """
    free = may_run_again(problem)
    if find_spec("ortools") is None:
        return schedule
    rng = random.Random(seed)
    best, seconds = schedule, simulate(problem, schedule).seconds
    until = time.monotonic() + PATIENCE * limit_seconds
    for _ in range(int(limit_seconds / MEAN_SECONDS)):
        ops = _some(free, best, rng)
        if not ops or time.monotonic() > until:
            break
        found = _decide_again(problem, best, budget_bytes, ops, rng.randrange(1 << 30))
        if found is not None:
            result = simulate(problem, found)
            if result.peak_bytes <= budget_bytes and result.seconds < seconds:
                best, seconds = found, result.seconds
    return best


def _some(ops: tuple[int, ...], schedule: Schedule, rng: random.Random) -> set[int]:
    """Ops next to one that runs again now, and next to any others; none where nothing runs again."""
    runs = Counter(schedule)
    again = [place for place, op in enumerate(ops) if runs[op] > 1]
    if not again:
        return set()
    count = rng.randint(1, STRETCHES)
    length = min(OPS // count, len(ops))
    middles = [rng.choice(again), *(rng.randrange(len(ops)) for _ in range(count - 1))]
    starts = [min(max(0, middle - rng.randrange(length)), len(ops) - length) for middle in middles]
    return {op for start in starts for op in ops[start : start + length]}


def _decide_again(problem: Problem, schedule: Schedule, budget_bytes: int, ops: set[int], seed: int) -> Schedule | None:
    runs = Counter(op for op in schedule if op in ops)
    question = Question(window(problem, schedule, ops, budget_bytes), {op: max(1, n - 1) for op, n in runs.items()})
    return solve(question, schedule, Effort(MOST_SECONDS, seed=seed)).schedule
