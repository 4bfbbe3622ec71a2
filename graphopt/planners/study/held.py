"""Which values are never freed."""

from __future__ import annotations

from graphopt.problem.problem import Problem


def held_values(problem: Problem) -> frozenset[int]:
    """What no planner frees: values that can be made only once, and the outputs of a training step.

    The caller holds a forward's outputs, and gradients may be taken as they come: freeing either
    would free nothing.
    """
    held = {v for op in problem.ops if not op.recomputable for v in op.outputs}
    if problem.first_backward < len(problem.ops):
        held.update(v for v in problem.outputs if problem.producer[v] >= 0)
    return frozenset(held)
