"""A schedule in which steps come and go in some ten microseconds, with its memory kept exact.

A step is known by its label, a number that is greater than the labels of all steps before it. What
a value's lives are follows from two sorted lists: when its op runs, and when it is read.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

import numpy as np

from graphopt.planners.schedules.spans import Spans
from graphopt.problem.problem import Problem

#: Room between the labels of two steps of a new track.
SPACE = 1 << 80


class Track:
    """The steps of a schedule by label, and the bytes alive at each; the outputs are read at label `end`."""

    def __init__(self, problem: Problem, schedule: Sequence[int]) -> None:
        spans = Spans(problem, schedule)
        self.problem = problem
        self.seconds = spans.seconds
        self.size = [value.bytes for value in problem.values]
        self.workspace = [op.workspace_bytes for op in problem.ops]
        #: What is alive at a step, but not across it.
        self.own = [op.workspace_bytes + sum(self.size[v] for v in op.outputs) for op in problem.ops]
        self.inputs = [tuple(v for v in op.inputs if problem.producer[v] >= 0) for op in problem.ops]
        self.count = len(schedule)
        self.labels = [SPACE * (i + 1) for i in range(self.count)]
        self.end = SPACE * (self.count + 1)
        self.op_at = dict(zip(self.labels, schedule, strict=True))
        self.runs: list[list[int]] = [[] for _ in problem.ops]
        self.reads: list[list[int]] = [[] for _ in problem.values]
        for label, op in self.op_at.items():
            self.runs[op].append(label)
            for value in self.inputs[op]:
                self.reads[value].append(label)
        kept = [v for v in problem.outputs if problem.producer[v] >= 0]
        for value in kept:
            self.reads[value].append(self.end)
        self._memory = np.zeros(2 * self.count + 64, dtype=np.int64)
        self._memory[: self.count] = spans.memory
        self._memory[self.count] = sum(self.size[v] for v in kept)

    @property
    def memory(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Bytes alive at each step, and at the end."""
        return self._memory[: self.count + 1]

    @property
    def schedule(self) -> list[int]:
        """Op ids in the order in which they run."""
        return [self.op_at[label] for label in self.labels]

    def rank(self, label: int) -> int:
        """How many steps come before a label."""
        return bisect_left(self.labels, label)

    def life(self, value: int, label: int) -> tuple[int, int, int]:
        """Birth, last read before `label` and last read of all, of the copy that is read at or before it."""
        runs, reads = self.runs[self.problem.producer[value]], self.reads[value]
        at = bisect_left(runs, label)
        born = runs[at - 1]
        place = bisect_left(reads, label)
        before = reads[place - 1] if place and reads[place - 1] > born else born
        last = len(reads) if at == len(runs) else bisect_left(reads, runs[at])
        return born, before, (reads[last - 1] if last > place else before)

    def room_before(self, label: int, steps: int) -> list[int] | None:
        """Labels for so many steps right before one; None where numbers have run out."""
        at = self.rank(label)
        low = self.labels[at - 1] if at else 0
        gap = (label - low) // (steps + 1)
        return [low + gap * (i + 1) for i in range(steps)] if gap else None

    def insert(self, label: int, op: int) -> None:
        """Run `op` at a free label; what reads its outputs later reads this copy."""
        memory, rank, size = self._memory, self.rank(label), self.size
        after = self.op_at[self.labels[rank]] if rank < self.count else -1
        across = int(memory[rank]) - (self.own[after] if after >= 0 else 0)
        if self.count + 2 > len(memory):
            self._memory = memory = np.concatenate([memory, np.zeros_like(memory)])
        memory[rank + 1 : self.count + 2] = memory[rank : self.count + 1]
        memory[rank] = across + self.workspace[op]
        self.labels.insert(rank, label)
        self.count += 1
        self.op_at[label] = op
        self.seconds += self.problem.ops[op].seconds
        for value in self.inputs[op]:
            _, before, last = self.life(value, label)
            if last < label:
                memory[self.rank(before) + 1 : rank + 1] += size[value]
            insort(self.reads[value], label)
        for value in self.problem.ops[op].outputs:
            _, before, last = self.life(value, label)
            if last > label:
                memory[self.rank(before) + 1 : rank] -= size[value]
            else:
                memory[rank] += size[value]
        insort(self.runs[op], label)

    def delete(self, label: int) -> None:
        """Take out a recomputation; what read its outputs reads the copy before it."""
        memory, rank, size = self._memory, self.rank(label), self.size
        op = self.op_at.pop(label)
        self.runs[op].remove(label)
        for value in self.problem.ops[op].outputs:
            _, before, last = self.life(value, label)
            if last > label:
                memory[self.rank(before) + 1 : rank] += size[value]
        for value in self.inputs[op]:
            self.reads[value].remove(label)
            _, before, last = self.life(value, label)
            if last < label:
                memory[self.rank(before) + 1 : rank] -= size[value]
        memory[rank : self.count] = memory[rank + 1 : self.count + 1]
        del self.labels[rank]
        self.count -= 1
        self.seconds -= self.problem.ops[op].seconds

    def serves(self, label: int) -> bool:
        """Whether anything reads what the step at `label` makes."""
        op = self.op_at[label]
        runs = self.runs[op]
        at = bisect_right(runs, label)
        stop = runs[at] if at < len(runs) else self.end + 1
        for value in self.problem.ops[op].outputs:
            reads = self.reads[value]
            place = bisect_right(reads, label)
            if place < len(reads) and reads[place] < stop:
                return True
        return False
