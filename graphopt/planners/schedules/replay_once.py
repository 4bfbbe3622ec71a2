"""Schedules from a choice of what to keep: all else is computed again just before it is read."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from graphopt.planners.native import native_for
from graphopt.planners.schedules.layout import Ints
from graphopt.planners.schedules.replay import held_values, missing_ops
from graphopt.problem.problem import Problem


def recompute_once(problem: Problem, end: int, kept: Collection[int]) -> Ints:
    """Run the forward up to op `end`, keep `kept`, then compute what is missing once, when it is first read.

    This is what segment checkpointing (Chen et al. 2016) and PyTorch's partitioner both emit; they
    differ in how `kept` is chosen.
    """
    alive = held_values(problem).union(kept)
    native = native_for(problem)
    if native is not None:
        return native.recompute_once(end, alive)
    schedule = list(range(end))
    for op_id in range(end, len(problem.ops)):
        op = problem.ops[op_id]
        if not alive.issuperset(op.inputs):
            for again in missing_ops(problem, op.inputs, alive):
                schedule.append(again)
                alive.update(problem.ops[again].outputs)
        schedule.append(op_id)
        alive.update(op.outputs)
    return np.array(schedule, dtype=np.int64)
