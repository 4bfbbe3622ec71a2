"""Which values a step is sure to find made before it and read after it, or owed as outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from graphopt.problem.problem import Problem

#: Values that are wanted across the first run of an op.
Wanted = Callable[[int], list[int]]


def wanted_in_order(problem: Problem) -> Wanted:
    """Where the first runs stand in the problem's own order."""
    made = np.array(problem.producer, dtype=np.int64)
    made[made < 0] = len(problem.ops)
    last = np.array([max(readers, default=-1) for readers in problem.readers], dtype=np.int64)
    last[list(problem.outputs)] = len(problem.ops)

    def wanted(step: int) -> list[int]:
        found: list[int] = np.flatnonzero((made < step) & (last > step)).tolist()
        return found

    return wanted


def wanted_in_any_order(problem: Problem) -> Wanted:
    """Where all that is known is that an op runs after those that it depends on.

    Looked up step by step: for all pairs of ops it would take memory in the square of their number.
    """
    related, outputs = Related(problem), set(problem.outputs)

    def wanted(step: int) -> list[int]:
        before, after = related.before(step), related.after(step)
        made = (v for op_id in before for v in problem.ops[op_id].outputs)
        return sorted(v for v in made if v in outputs or not after.isdisjoint(problem.readers[v]))

    return wanted


class Related:
    """Which ops depend on which."""

    def __init__(self, problem: Problem) -> None:
        producer, readers = problem.producer, problem.readers
        self._makers = [{producer[v] for v in op.inputs} - {-1} for op in problem.ops]
        self._followers = [{r for v in op.outputs for r in readers[v]} for op in problem.ops]

    def before(self, op: int) -> set[int]:
        """All that an op depends on."""
        return _reached(op, self._makers)

    def after(self, op: int) -> set[int]:
        """All that depends on it."""
        return _reached(op, self._followers)


def _reached(start: int, next_to: Sequence[set[int]]) -> set[int]:
    """Ops that can be reached from one, itself left out."""
    found: set[int] = set()
    stack = [start]
    while stack:
        new = next_to[stack.pop()] - found
        found |= new
        stack.extend(new)
    return found
