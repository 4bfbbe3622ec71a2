"""Where searching for less memory ends."""

from __future__ import annotations

from graphopt.problem import Problem


def practical_floor(problem: Problem) -> int:
    """Bytes below which it is not worth looking.

    While an op first runs there are its own values, and of those made before it the outputs and
    whatever cannot be made again and is still to be read. It is a bound for schedules that make
    every output once, as all good ones do that were seen.
    """
    ops, size = problem.ops, problem.values
    stuck_until = [-1] * len(size)
    for op in ops:
        for value in op.outputs:
            if not op.recomputable:
                stuck_until[value] = max(problem.readers[value], default=-1)
    outputs = {v for v in problem.outputs if problem.producer[v] >= 0}
    for value in outputs:
        stuck_until[value] = len(ops)
    least, held, leaving = 0, 0, [0] * (len(ops) + 1)
    for op_id, op in enumerate(ops):
        own = {v for v in (*op.inputs, *op.outputs) if problem.producer[v] >= 0}
        # A value that is stuck and was made before is in `held` already.
        new = [v for v in own if stuck_until[v] < op_id or problem.producer[v] == op_id]
        least = max(least, held + op.workspace_bytes + sum(size[v].bytes for v in new))
        for value in op.outputs:
            if stuck_until[value] > op_id:
                held += size[value].bytes
                leaving[stuck_until[value]] += size[value].bytes
        held -= leaving[op_id]
    return least
