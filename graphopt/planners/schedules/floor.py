"""Where searching for less memory ends."""

from __future__ import annotations

from graphopt.planners.study.study import Study, once_per_study


@once_per_study
def practical_floor(study: Study) -> int:
    """Bytes below which it is not worth looking.

    While an op first runs there are its own values, and of those made before it the outputs of a
    training step and what cannot be made again and is still to be read.
    """
    problem, fixed = study.problem, study.held
    ops, size = problem.ops, problem.values
    stuck_until = [-1] * len(size)
    for op in ops:
        for value in op.outputs:
            if not op.recomputable:
                stuck_until[value] = max(problem.readers[value], default=-1)
    for value in problem.outputs:
        if value in fixed:
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
