"""Ops that could run on either side of another one."""

from __future__ import annotations

import numpy as np

from graphopt.planners.native.arrays import Ints
from graphopt.planners.native.plain_order import FARTHEST
from graphopt.planners.study.study import Study


def unrelated(study: Study, op: int) -> list[int]:
    """Ops of the same half that neither led to `op` nor follow from it."""
    problem = study.problem
    related, stack = {op}, [op]
    while stack:
        for value in study.reads[stack.pop()]:
            maker = problem.producer[value]
            if maker not in related:
                related.add(maker)
                stack.append(maker)
    after, stack = {op}, [op]
    while stack:
        for value in problem.ops[stack.pop()].outputs:
            new = set(problem.readers[value]) - after
            after |= new
            stack.extend(new)
    related |= after
    first = problem.first_backward
    half = range(first) if op < first else range(first + 1, len(problem.ops)) if op > first else range(op, op)
    return [other for other in half if other not in related]


def able_to_pass(study: Study, order: Ints, op: int) -> list[int]:
    """Those of the unrelated ops that are near enough in an order for one move to the other side of `op`."""
    where = np.argsort(order)
    return [other for other in unrelated(study, op) if abs(where[other] - where[op]) < FARTHEST]
