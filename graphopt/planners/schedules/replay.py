"""What must run so that values are there, and which values are never freed."""

from __future__ import annotations

from collections.abc import Iterable

from graphopt.planners.curves.curve import once_per_problem
from graphopt.problem.problem import Problem


def missing_ops(problem: Problem, wanted: Iterable[int], alive: set[int]) -> list[int]:
    """Ops to run, in order, so that all `wanted` values are there, given those that are `alive`."""
    producer, reads = problem.producer, _reads(problem)
    needed: set[int] = set()
    stack = [v for v in wanted if producer[v] >= 0 and v not in alive]
    while stack:
        maker = producer[stack.pop()]
        if maker not in needed:
            needed.add(maker)
            stack.extend(reads[maker] - alive)
    return sorted(needed)


@once_per_problem
def _reads(problem: Problem) -> list[frozenset[int]]:
    """For each op what it reads of what others make."""
    return [frozenset(v for v in op.inputs if problem.producer[v] >= 0) for op in problem.ops]


def pinned_values(problem: Problem) -> set[int]:
    """Values that can be made only once."""
    return {v for op in problem.ops if not op.recomputable for v in op.outputs}


def held_values(problem: Problem) -> set[int]:
    """What no planner frees: values that can be made only once, and the outputs of a training step.

    The caller holds a forward's outputs, and gradients may be taken as they come: freeing either
    would free nothing.
    """
    held = pinned_values(problem)
    if problem.first_backward < len(problem.ops):
        held.update(v for v in problem.outputs if problem.producer[v] >= 0)
    return held
