"""Which first runs are looked at together, and between which two of them each op first runs."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from graphopt.planners.bounds.stage_model import Moments
from graphopt.planners.bounds.wanted import Related
from graphopt.planners.schedules.memory_profile import in_own_order
from graphopt.planners.study.study import Study


def moments_in_order(study: Study, budget_bytes: int, count: int, dearest: int) -> Moments:
    """About so many moments, where first runs stand in the problem's own order: one is op `dearest`."""
    size = in_own_order(study).live_bytes.tolist()
    highest = (max(ops, key=size.__getitem__) for ops in _blocks(study, budget_bytes, count, dearest))
    chosen = sorted({dearest, *highest})
    after = [bisect_left(chosen, op) for op in range(len(study.problem.ops))]
    before = [moment + 1 for moment in after]
    for moment, op in enumerate(chosen, 1):
        after[op] = before[op] = moment
    return Moments(tuple(chosen), after, before)


def moments_in_any_order(study: Study, budget_bytes: int, count: int, dearest: int) -> Moments:
    """The same where all that is known is which op depends on which: each moment depends on the one before."""
    related, size = Related(study.problem), in_own_order(study).live_bytes.tolist()
    earlier, later = {dearest: related.before(dearest)}, {dearest: related.after(dearest)}
    fitting = earlier[dearest] | later[dearest]
    for ops in _blocks(study, budget_bytes, count, dearest):
        there = fitting.intersection(ops)
        if there:
            op = max(there, key=lambda op: (size[op], -op))
            earlier[op], later[op] = related.before(op), related.after(op)
            fitting &= earlier[op] | later[op]
    # Of two ops that depend on each other the earlier one has the lower number.
    chosen = sorted(earlier)
    after, before = [0] * len(study.problem.ops), [len(chosen) + 1] * len(study.problem.ops)
    for moment, op in enumerate(chosen, 1):
        for other in later[op]:
            after[other] = moment
    for moment, op in reversed(list(enumerate(chosen, 1))):
        for other in earlier[op]:
            before[other] = moment
    for moment, op in enumerate(chosen, 1):
        after[op] = before[op] = moment
    return Moments(tuple(chosen), after, before)


def _blocks(study: Study, budget_bytes: int, count: int, dearest: int) -> list[list[int]]:
    """The steps of the own order that are over the budget, cut into so many parts.

    Where there is a backward, from its begin on, or from op `dearest` if that is sooner: of moments of the forward
    before it none had a price in the bounds of three models, and they make programmes twice as large.
    """
    first = study.problem.first_backward
    begin = min(dearest, first) if first < len(study.problem.ops) else 0
    over = np.flatnonzero(in_own_order(study).live_bytes > budget_bytes)
    late = over[over >= begin]
    return [block.tolist() for block in np.array_split(late, count) if len(block)]
