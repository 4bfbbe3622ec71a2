"""The problem with its ops in another order, and schedules of it told in the problem's own ids."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphopt.planners.curves.curve import Curve, once_per_problem
from graphopt.planners.orders.moves import Ordering, able_to_pass, settle
from graphopt.problem.problem import Problem

#: An order is another one only if it lowers the peak by this share.
LEAST_GAIN = 0.005
#: Problems of more ops keep their order: looking at those around a peak alone takes longer than all other planning.
MOST_OPS = 20_000
#: How many peaks are looked at for that, and how often all ops are once it pays.
PEAKS, PASSES = 8, 4


@once_per_problem
def _orders(problem: Problem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """An order of a lower peak, be it by a byte, and one of a clearly lower peak; the own one where none was found."""
    own = tuple(range(len(problem.ops)))
    if len(problem.ops) > MOST_OPS:
        return own, own
    ordering = Ordering(problem)
    first, at = ordering.highest()
    seen: set[int] = set()
    # Where nothing could pass the highest steps there is no need to look at all the other ops.
    while at not in seen and len(seen) < PEAKS:
        seen.add(at)
        settle(ordering, able_to_pass(ordering, at), 1)
        at = ordering.highest()[1]
    lower = tuple(ordering.order) if ordering.highest()[0] < first else own
    if ordering.highest()[0] > (1 - LEAST_GAIN) * first:
        return lower, own
    settle(ordering, range(len(problem.ops)), PASSES)
    return lower, tuple(ordering.order)


def slightly_lower(problem: Problem) -> tuple[int, ...]:
    """Op ids in an order of which the peak is lower, be it by a byte: good for one schedule, not for a whole curve."""
    return _orders(problem)[0]


def reordered(problem: Problem) -> tuple[int, ...]:
    """Op ids in an order of which the peak is clearly lower; the problem's own order where none was found.

    Ops that are pinned, or cannot be recomputed, keep their order among themselves; forward ops stay
    before the first backward op, the others behind it.
    """
    return _orders(problem)[1]


@once_per_problem
def in_lower_order(problem: Problem) -> Problem:
    """The problem with its ops in the other order: its op `i` is the problem's op `reordered(problem)[i]`."""
    return replace(problem, ops=tuple(problem.ops[op_id] for op_id in reordered(problem)))


def in_own_ids(problem: Problem, curve: Curve) -> Curve:
    """Points of a curve of `in_lower_order(problem)` as schedules of the problem itself."""
    ids = np.array(reordered(problem), dtype=np.int64)
    return tuple(replace(point, base=ids[point.base], planner="reorder") for point in curve)
