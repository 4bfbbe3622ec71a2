"""A schedule that can lose recomputations one by one, with its memory profile kept exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from graphopt.planners.curve import CurvePoint
from graphopt.problem import Problem


class Timeline:
    """Steps of a schedule; `drop` deletes a recomputation and keeps its values alive instead.

    A deleted step stays in the profile as a position at which only the values that live across it
    count: never more than at its neighbours, so `memory.max()` is the simulator's peak.
    """

    def __init__(self, problem: Problem, schedule: Sequence[int]) -> None:
        self.problem = problem
        self.steps = list(schedule)
        self.seconds = sum(problem.ops[i].seconds for i in schedule)
        self.size = [value.bytes for value in problem.values]
        #: The step before, and after, that runs the same op; -1 where there is none.
        self.previous = [-1] * len(self.steps)
        self.next = [-1] * len(self.steps)
        #: For each step and input the step that produced it; for each step and output its readers.
        self.sources: list[dict[int, int]] = []
        self.readers: list[dict[int, list[int]]] = []
        #: Number of reads of all of a step's outputs.
        self.reads = [0] * len(self.steps)
        self._link()
        self.memory = self._profile()

    def _link(self) -> None:
        ops, producer = self.problem.ops, self.problem.producer
        made = [0] * len(self.size)
        last_run = [-1] * len(ops)
        all_readers, reads = self.readers, self.reads
        for step, op_id in enumerate(self.steps):
            op = ops[op_id]
            sources: dict[int, int] = {}
            for value in op.inputs:
                if producer[value] >= 0:
                    source = sources[value] = made[value]
                    all_readers[source][value].append(step)
                    reads[source] += 1
            self.sources.append(sources)
            all_readers.append({value: [] for value in op.outputs})
            for value in op.outputs:
                made[value] = step
            before = self.previous[step] = last_run[op_id]
            if before >= 0:
                self.next[before] = step
            last_run[op_id] = step
        for value in self.problem.outputs:
            if producer[value] >= 0:
                all_readers[made[value]][value].append(len(self.steps))
                reads[made[value]] += 1

    def _profile(self) -> npt.NDArray[np.int64]:
        """What `simulate` would find, from the readers."""
        size = self.size
        spans = [
            (step, readers[-1] if readers else step, size[value])
            for step, outputs in enumerate(self.readers)
            for value, readers in outputs.items()
        ]
        change = np.zeros(len(self.steps) + 2, dtype=np.int64)
        if spans:
            first, last, sizes = np.array(spans, dtype=np.int64).T
            np.add.at(change, first, sizes)
            np.add.at(change, last + 1, -sizes)
        ops = self.problem.ops
        workspace = np.fromiter((ops[i].workspace_bytes for i in self.steps), dtype=np.int64, count=len(self.steps))
        memory: npt.NDArray[np.int64] = np.cumsum(change)[: len(self.steps)] + workspace
        return memory

    @property
    def peak_bytes(self) -> int:
        """The highest number of bytes alive at any step."""
        return int(self.memory.max(initial=0))

    def point(self, planner: str) -> CurvePoint:
        """The curve point of a timeline that has lost nothing yet."""
        return CurvePoint(self.peak_bytes, self.seconds, planner, np.array(self.steps, dtype=np.int64))

    def gap(self, step: int) -> tuple[int, int, int]:
        """First and last-but-one position, and bytes, of what dropping `step` keeps alive."""
        before = self.readers[self.previous[step]]
        first, size = step, 0
        for value, readers in self.readers[step].items():
            if readers:
                size += self.size[value]
                first = min(first, (before[value][-1] if before[value] else self.previous[step]) + 1)
        return first, step, size

    def saving(self, step: int, limit: int = 400) -> float:
        """Seconds that dropping `step` saves: its own and those of steps that served only it."""
        ops, steps = self.problem.ops, self.steps
        total = ops[steps[step]].seconds
        left = {self.previous[step]: 1 << 60}
        stack = [step]
        for gone in stack:
            for source in self.sources[gone].values():
                if self.previous[source] >= 0:
                    left[source] = left.get(source, self.reads[source]) - 1
                    if not left[source] and len(stack) < limit:
                        total += ops[steps[source]].seconds
                        stack.append(source)
        return total

    def drop(self, step: int) -> tuple[list[int], set[int]]:
        """Delete `step` and whatever served only it: the steps that went, those whose readers changed."""
        gone: list[int] = [step]
        changed: set[int] = set()
        self._keep_alive(step)
        for current in gone:
            self._unlink(current)
            # The next run of the same op now has another one before it.
            changed.add(self.previous[current])
            for value, source in self.sources[current].items():
                self._lose_reader(source, value, current)
                changed.add(source)
                if not self.reads[source] and self.previous[source] >= 0:
                    gone.append(source)
        return gone, changed.difference(gone)

    def _keep_alive(self, step: int) -> None:
        keeper = self.previous[step]
        for value, readers in self.readers[step].items():
            kept = self.readers[keeper][value]
            if readers:
                self.memory[(kept[-1] if kept else keeper) + 1 : step] += self.size[value]
                kept.extend(readers)
                for reader in readers:
                    if reader < len(self.steps):
                        self.sources[reader][value] = keeper
            else:
                self.memory[step] -= self.size[value]
        self.reads[keeper] += self.reads[step]
        self.reads[step] = 0
        self.readers[step] = {}

    def _unlink(self, step: int) -> None:
        op = self.problem.ops[self.steps[step]]
        self.memory[step] -= op.workspace_bytes + sum(self.size[v] for v in self.readers[step])
        self.seconds -= op.seconds
        before, after = self.previous[step], self.next[step]
        self.next[before] = after
        if after >= 0:
            self.previous[after] = before

    def _lose_reader(self, source: int, value: int, reader: int) -> None:
        readers = self.readers[source][value]
        if readers[-1] == reader:
            readers.pop()
            self.memory[(readers[-1] if readers else source) + 1 : reader + 1] -= self.size[value]
        else:
            readers.remove(reader)
        self.reads[source] -= 1
