"""One problem and all that planning derives from it: inner loops, held values, orders, cutters, floor, curves."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, wraps
from typing import Any, TypeVar

from graphopt.planners.native.loops import Loops, loops_for
from graphopt.planners.study.held import held_values
from graphopt.problem.problem import Problem

Made = TypeVar("Made")


class Study:
    """Owns what is derived from `problem`, each thing made when it is first asked for and then kept.

    Whoever asks several planners, or one for several budgets, makes one and passes it on: the curve is
    then planned once. With `compiled=False` the loops are the plain ones, as where there is no compiler.
    """

    def __init__(self, problem: Problem, *, compiled: bool = True) -> None:
        self.problem = problem
        self._compiled = compiled
        self._results: dict[Callable[[Study], Any], Any] = {}

    @cached_property
    def held(self) -> frozenset[int]:
        """Ids of the values that are never freed."""
        return held_values(self.problem)

    @cached_property
    def loops(self) -> Loops:
        """The inner loops, with the problem as they read it."""
        return loops_for(self.problem, self.held, self._compiled)

    @cached_property
    def reads(self) -> list[frozenset[int]]:
        """For each op what it reads of what others make."""
        producer = self.problem.producer
        return [frozenset(v for v in op.inputs if producer[v] >= 0) for op in self.problem.ops]

    def of(self, problem: Problem) -> Study:
        """A study of another problem, with loops of the same kind."""
        return Study(problem, compiled=self._compiled)

    def once(self, build: Callable[[Study], Made]) -> Made:
        """What `build` makes of this study, made when it is first asked for."""
        if build not in self._results:
            self._results[build] = build(self)
        made: Made = self._results[build]
        return made


def once_per_study(build: Callable[[Study], Made]) -> Callable[[Study], Made]:
    """The same function, whose result the study keeps: for what does not depend on any budget."""

    @wraps(build)
    def kept(study: Study) -> Made:
        return study.once(build)

    return kept


def study_of(problem: Problem | Study) -> Study:
    """A study as it is, or a new one of a problem."""
    return problem if isinstance(problem, Study) else Study(problem)
