"""A schedule as copies of values: each time that one is made, and who reads it then."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from graphopt.planners.native.arrays import Ints
from graphopt.problem.problem import Problem


@dataclass(frozen=True, slots=True)
class Copy:
    """A value as one step makes it; the steps that read it, in order. Outputs are read after the last step."""

    value: int
    born: int
    readers: list[int]

    @property
    def last(self) -> int:
        """The last step at which it is alive."""
        return self.readers[-1] if self.readers else self.born


def copies_of(problem: Problem, schedule: Iterable[int]) -> list[list[Copy]]:
    """For each value its copies, in the order in which they are made; none for resident ones."""
    copies: list[list[Copy]] = [[] for _ in problem.values]
    step = -1
    for step, op_id in enumerate(schedule):
        op = problem.ops[op_id]
        for value in op.inputs:
            if copies[value]:
                copies[value][-1].readers.append(step)
        for value in op.outputs:
            copies[value].append(Copy(value, step, []))
    for value in problem.outputs:
        if copies[value]:
            copies[value][-1].readers.append(step + 1)
    return copies


@dataclass(frozen=True, slots=True)
class Recomputation:
    """A step that runs an op again.

    Without it `bytes` stay from step `first` until it, and `seconds` are saved: its own and those of
    recomputations that serve only it.
    """

    step: int
    op: int
    first: int
    bytes: int
    seconds: float


def recomputations(problem: Problem, schedule: Ints) -> list[Recomputation]:
    """Every one of a schedule, in order."""
    steps: list[int] = schedule.tolist()
    copies = copies_of(problem, steps)
    readers: list[list[int]] = [[] for _ in steps]
    for copy in (copy for each in copies for copy in each):
        readers[copy.born] += copy.readers
    runs = [0] * len(problem.ops)
    saved = [problem.ops[op_id].seconds for op_id in steps]
    found: list[tuple[int, int, int, int]] = []
    for step, op_id in enumerate(steps):
        run = runs[op_id]
        runs[op_id] += 1
        if not run:
            continue
        only = set(readers[step])
        if len(only) == 1 and max(only) < len(steps):
            saved[max(only)] += saved[step]
        pairs = [copies[value][run - 1 : run + 1] for value in problem.ops[op_id].outputs]
        first = min((before.last + 1 for before, here in pairs if here.readers), default=step)
        found.append((step, op_id, first, sum(problem.values[b.value].bytes for b, h in pairs if h.readers)))
    return [Recomputation(*row, saved[row[0]]) for row in found]


def without_idle(problem: Problem, schedule: Ints, gone: set[int]) -> Ints:
    """The steps that are left without those that are `gone`, and without recomputations that nothing reads then."""
    stay = np.delete(np.arange(len(schedule)), list(gone))
    while True:
        steps: list[int] = schedule[stay].tolist()
        copies = [copy for each in copies_of(problem, steps) for copy in each]
        first = {op_id: step for step, op_id in reversed(list(enumerate(steps)))}
        read = {copy.born for copy in copies if copy.readers}
        idle = [step for step, op_id in enumerate(steps) if step != first[op_id] and step not in read]
        if not idle:
            return stay
        stay = np.delete(stay, idle)
