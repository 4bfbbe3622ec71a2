"""The problem with its ops in another order, and schedules of it told in the problem's own ids."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphopt.planners.curves.curve import Curve
from graphopt.planners.native.arrays import Ints
from graphopt.planners.orders.unrelated import able_to_pass
from graphopt.planners.study.study import Study, once_per_study

#: An order is another one only if it lowers the peak by this share.
LEAST_GAIN = 0.005
#: Problems of more ops keep their order: looking at those around a peak alone takes longer than all other planning.
MOST_OPS = 20_000
#: How many peaks are looked at for that, and how often all ops are once it pays.
PEAKS, PASSES = 8, 4


@once_per_study
def _orders(study: Study) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """An order of a lower peak, be it by a byte, and one of a clearly lower peak; the own one where none was found."""
    order = np.arange(len(study.problem.ops))
    own: tuple[int, ...] = tuple(order.tolist())
    if len(own) > MOST_OPS:
        return own, own
    first, at = highest = _highest(study, order)
    seen: set[int] = set()
    # Where nothing could pass the highest steps there is no need to look at all the other ops.
    while at not in seen and len(seen) < PEAKS:
        seen.add(at)
        order = study.loops.reorder(order, np.array(able_to_pass(study, order, at), dtype=np.int64), 1)
        highest = _highest(study, order)
        at = highest[1]
    lower = tuple(order.tolist()) if highest[0] < first else own
    if highest[0] > (1 - LEAST_GAIN) * first:
        return lower, own
    return lower, tuple(study.loops.reorder(order, np.arange(len(own)), PASSES).tolist())


def _highest(study: Study, order: Ints) -> tuple[int, int]:
    """The most bytes that are alive in an order, and the first op that runs then."""
    live_bytes, peak_bytes, _ = study.loops.profile(order)
    return peak_bytes, int(order[live_bytes.argmax()])


def slightly_lower(study: Study) -> tuple[int, ...]:
    """Op ids in an order of which the peak is lower, be it by a byte: good for one schedule, not for a whole curve."""
    return _orders(study)[0]


def reordered(study: Study) -> tuple[int, ...]:
    """Op ids in an order of which the peak is clearly lower; the problem's own order where none was found.

    Ops that are pinned, or cannot be recomputed, keep their order among themselves; forward ops stay
    before the first backward op, the others behind it.
    """
    return _orders(study)[1]


@once_per_study
def in_lower_order(study: Study) -> Study:
    """Of the problem with its ops in the other order: its op `i` is the problem's op `reordered(study)[i]`.

    The study itself where there is no other order.
    """
    order, ops = reordered(study), study.problem.ops
    if order == tuple(range(len(ops))):
        return study
    return study.of(replace(study.problem, ops=tuple(ops[op_id] for op_id in order)))


def in_own_ids(study: Study, curve: Curve) -> Curve:
    """Points of a curve of `in_lower_order(study)` as schedules of the problem itself; trajectories stay shared."""
    ids = np.array(reordered(study), dtype=np.int64)
    bases = {id(point.base): point.base for point in curve}
    own = {key: ids[base] for key, base in bases.items()}
    return tuple(replace(point, base=own[id(point.base)], planner="reorder") for point in curve)
