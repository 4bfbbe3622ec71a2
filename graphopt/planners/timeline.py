"""A schedule that can lose recomputations one by one, with its memory profile kept exact."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from graphopt.planners.spans import Spans


class Timeline:
    """Steps of a schedule; `drop` deletes a recomputation and keeps its values alive instead.

    A deleted step stays in the profile as a position at which only the values that live across it
    count: never more than at its neighbours, so `memory.max()` is the simulator's peak.
    """

    def __init__(self, spans: Spans) -> None:
        self.problem = spans.problem
        self.steps: list[int] = spans.op.tolist()
        self.seconds = spans.seconds
        self.size = [value.bytes for value in self.problem.values]
        self.memory = spans.memory.copy()
        #: The step before, and after, that runs the same op; -1 where there is none.
        self.previous: list[int] = spans.previous.tolist()
        self.next = [-1] * len(self.steps)
        for step in np.flatnonzero(spans.previous >= 0).tolist():
            self.next[self.previous[step]] = step
        #: Number of reads of all of a step's outputs.
        self.reads: list[int] = np.bincount(spans.source, minlength=len(self.steps)).tolist()
        #: For each step and input the step that produced it; for each step and output its readers.
        value, source, at = spans.read_value.tolist(), spans.source.tolist(), spans.read_at.tolist()
        self.sources: list[dict[int, int]] = [dict(zip(value[a:b], source[a:b], strict=True)) for a, b in pairwise(at)]
        self.readers = self._readers(spans)

    def _readers(self, spans: Spans) -> list[dict[int, list[int]]]:
        reader: list[int] = spans.read_step[spans.by_cell].tolist()
        ends = np.cumsum(np.bincount(spans.read_cell, minlength=len(spans.cell_value))).tolist()
        each = [reader[a:b] for a, b in pairwise([0, *ends])]
        value, at = spans.cell_value.tolist(), spans.cell_at.tolist()
        return [dict(zip(value[a:b], each[a:b], strict=True)) for a, b in pairwise(at)]

    @property
    def peak_bytes(self) -> int:
        """The highest number of bytes alive at any step."""
        return int(self.memory.max(initial=0))

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
