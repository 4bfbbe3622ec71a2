"""What the solver may decide of a schedule: which ops run again, and when, and what is fixed around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.planners.schedules.replay import held_values
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule, lifetimes


@dataclass(frozen=True)
class Background:
    """Bytes of what is not decided: most since the step before, between the two, and while this step runs."""

    before_bytes: int
    between_bytes: int
    during_bytes: int


@dataclass(frozen=True)
class Window:
    """Runs that are fixed, and ops that may run again before any of them.

    Only steps that make or read one of the `tracked` values are named; `places` says where they stand in
    `rest`, the schedule without what may change.
    """

    problem: Problem
    budget_bytes: int
    steps: tuple[int, ...]
    again: tuple[int, ...]
    tracked: frozenset[int]
    background: tuple[Background, ...]
    rest: Schedule
    places: tuple[int, ...]

    def insert(self, reruns: Iterable[tuple[int, int]]) -> Schedule:
        """The schedule with each op of `reruns`, pairs of stage and op, before the step of that number."""
        before: dict[int, list[int]] = {}
        for stage, op in sorted(reruns):
            before.setdefault((*self.places, len(self.rest))[stage], []).append(op)
        return tuple(
            op for place in range(len(self.rest) + 1) for op in (*before.get(place, ()), *self.rest[place : place + 1])
        )


def may_run_again(problem: Problem) -> tuple[int, ...]:
    """Ops that a planner may run a second time."""
    held = held_values(problem)
    return tuple(i for i, op in enumerate(problem.ops) if op.recomputable and held.isdisjoint(op.outputs))


def window(problem: Problem, schedule: Sequence[int], again: Iterable[int], budget_bytes: int) -> Window:
    """All that may be decided about the ops of `again`, if the other steps stay as they are."""
    free = frozenset(again)
    first: set[int] = set()
    rest: list[int] = []
    for op in schedule:
        if op not in free or op not in first:
            rest.append(op)
        first.add(op)
    tracked = frozenset(
        v for op in free for v in (*problem.ops[op].inputs, *problem.ops[op].outputs) if problem.producer[v] >= 0
    )
    return _around(problem, rest, free, tracked, budget_bytes)


def whole(problem: Problem, budget_bytes: int) -> Window:
    """All of a problem: every op once, in its own order, and all values tracked."""
    tracked = frozenset(v for v, maker in enumerate(problem.producer) if maker >= 0)
    return _around(problem, range(len(problem.ops)), may_run_again(problem), tracked, budget_bytes)


def _around(
    problem: Problem, rest: Sequence[int], again: Iterable[int], tracked: frozenset[int], budget_bytes: int
) -> Window:
    places = [
        i for i, op in enumerate(rest) if not tracked.isdisjoint((*problem.ops[op].inputs, *problem.ops[op].outputs))
    ]
    return Window(
        problem,
        budget_bytes,
        tuple(rest[i] for i in places),
        tuple(sorted(again)),
        tracked,
        _background(problem, rest, places, tracked),
        tuple(rest),
        tuple(places),
    )


def _background(
    problem: Problem, rest: Sequence[int], places: Sequence[int], tracked: frozenset[int]
) -> tuple[Background, ...]:
    """One for each place, and one for the end."""
    count = len(rest)
    during, between = np.zeros(count + 1, dtype=np.int64), np.zeros(count + 2, dtype=np.int64)
    for value, first, last in lifetimes(problem, rest):
        if value not in tracked:
            size = problem.values[value].bytes
            during[first] += size
            during[last + 1] -= size
            between[first + 1] += size
            between[last + 1] -= size
    during, between = np.cumsum(during), np.cumsum(between)
    during[:count] += np.array([problem.ops[op].workspace_bytes for op in rest], dtype=np.int64)
    found, after = [], 0
    for place in (*places, count):
        before = int(during[after:place].max(initial=0))
        found.append(Background(before, int(between[place]), int(during[place]) if place < count else 0))
        after = place + 1
    return tuple(found)
