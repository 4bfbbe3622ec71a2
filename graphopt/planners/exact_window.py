"""A stretch of a schedule as a problem of its own: what is there before, what must run, what must be there after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.planners.replay import held_values
from graphopt.problem import Problem


@dataclass(frozen=True)
class Window:
    """Stage `k` is what is computed again before `firsts[k]`, and `firsts[k]`; one stage more ends the window.

    `given` values are there at its start, `needed` values must be there at its end, and `again` are the
    ops that may be computed again in it. `budget_bytes` is what the values of no interest leave over.
    """

    problem: Problem
    firsts: tuple[int, ...]
    again: tuple[int, ...]
    given: tuple[int, ...]
    needed: tuple[int, ...]
    budget_bytes: int


def whole(problem: Problem, order: Sequence[int], budget_bytes: int) -> Window:
    """All of a problem, its ops' first runs in `order`."""
    held = held_values(problem)
    again = tuple(i for i, op in enumerate(problem.ops) if op.recomputable and held.isdisjoint(op.outputs))
    needed = tuple(v for v in problem.outputs if problem.producer[v] >= 0)
    return Window(problem, tuple(order), again, (), needed, budget_bytes)
