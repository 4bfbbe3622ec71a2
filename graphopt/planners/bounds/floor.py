"""Bytes that no schedule is below, whatever the order of its ops."""

from __future__ import annotations

from graphopt.planners.bounds.wanted import wanted_in_any_order
from graphopt.planners.study.study import Study


def floor_in_any_order(study: Study) -> int:
    """The least peak in bytes that is conceivable, in any order and with any recomputation that frees nothing held.

    While an op first runs there are its inputs, its outputs and its workspace, and of what planners never
    free (`Study.held`) all that is made by ops on which it depends and is either an output or read by ops
    that depend on it. At the end there are the outputs. Every op is looked at with all that it depends on,
    and all that depends on it.
    """
    problem, held = study.problem, study.held
    size, maker = [value.bytes for value in problem.values], problem.producer
    wanted = wanted_in_any_order(problem)
    least = sum(size[v] for v in problem.outputs if maker[v] >= 0)
    for op_id, op in enumerate(problem.ops):
        there = {v for v in (*op.inputs, *op.outputs) if maker[v] >= 0}.union(held.intersection(wanted(op_id)))
        least = max(least, op.workspace_bytes + sum(size[v] for v in there))
    return least
