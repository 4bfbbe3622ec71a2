"""The fewest seconds in which a small problem can be computed inside a budget: shortest ways over all states."""

import heapq
import math
from collections.abc import Iterator
from itertools import chain, combinations

from graphopt.problem.problem import Problem

State = tuple[frozenset[int], frozenset[int]]
"""Ops that have run, and values that are alive."""


def optimum_seconds(problem: Problem, budget_bytes: int, *, in_order: bool) -> float:
    """Over all valid schedules, with any recomputation; `in_order` where first runs keep the problem's own order.

    Infinite where none fits. For some ten ops in order, and fewer in any: states are all sets of values.
    """
    outputs = frozenset(v for v in problem.outputs if problem.producer[v] >= 0)
    start: State = (frozenset(), frozenset())
    best, queue, number = {start: 0.0}, [(0.0, 0, start)], 0
    while queue:
        seconds, _, state = heapq.heappop(queue)
        if seconds > best[state]:
            continue
        done, alive = state
        if len(done) == len(problem.ops) and outputs <= alive:
            return seconds
        for op_id, after in _steps(problem, state, budget_bytes, in_order):
            taken = seconds + problem.ops[op_id].seconds
            if taken < best.get(after, math.inf):
                number += 1
                best[after] = taken
                heapq.heappush(queue, (taken, number, after))
    return math.inf


def _steps(problem: Problem, state: State, budget_bytes: int, in_order: bool) -> Iterator[tuple[int, State]]:
    """Each op that can run next, with each choice of what stays alive behind it."""
    done, alive = state
    for op_id, op in enumerate(problem.ops):
        if op_id in done and not op.recomputable:
            continue
        if op_id not in done and in_order and op_id != len(done):
            continue
        if any(problem.producer[v] >= 0 and v not in alive for v in op.inputs):
            continue
        there = alive.union(op.outputs)
        if op.workspace_bytes + sum(problem.values[v].bytes for v in there) > budget_bytes:
            continue
        # What takes nothing may as well stay.
        free = frozenset(v for v in there if not problem.values[v].bytes)
        for kept in _subsets(sorted(there - free)):
            yield op_id, (done | {op_id}, free.union(kept))


def _subsets(values: list[int]) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(values, count) for count in range(len(values) + 1))
