"""A schedule that can lose recomputations one by one, with its memory profile kept exact."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from graphopt.planners.schedules.spans import Spans, highest


class Timeline:
    """Steps of a schedule; `drop` deletes a recomputation and keeps its values alive instead.

    A deleted step stays in the profile as a position at which only the values that live across it
    count: never more than at its neighbours, so `memory.max()` is the simulator's peak.
    """

    def __init__(self, spans: Spans) -> None:
        self.problem = spans.problem
        self.steps: list[int] = spans.op.tolist()
        self.seconds = spans.seconds
        self.memory = spans.memory.copy()
        #: The step before, and after, that runs the same op; -1 where there is none.
        self.previous: list[int] = spans.previous.tolist()
        self.next = [-1] * len(self.steps)
        again: list[int] = np.flatnonzero(spans.previous >= 0).tolist()
        for step in again:
            self.next[self.previous[step]] = step
        #: Number of reads of all of a step's outputs.
        self.reads: list[int] = np.bincount(spans.source, minlength=len(self.steps)).tolist()
        #: The cells of step `i`, each one output, are `cell_at[i]` to `cell_at[i + 1]`; for each its step and bytes.
        self.cell_at: list[int] = spans.cells.at.tolist()
        self.step_of: list[int] = spans.cells.step.tolist()
        self.size: list[int] = spans.layout.size[spans.cells.value].tolist()
        #: For each cell its readers, in order.
        reader: list[int] = spans.cells.read_step[spans.by_cell].tolist()
        ends = np.cumsum(np.bincount(spans.cells.read_cell, minlength=len(self.size))).tolist()
        self.readers = [reader[a:b] for a, b in pairwise([0, *ends])]
        #: For each recomputation the cells that it reads; no one asks for those of first runs.
        cells, at = spans.cells.read_cell.tolist(), spans.read_at.tolist()
        self.sources: dict[int, list[int]] = {step: cells[at[step] : at[step + 1]] for step in again}

    @property
    def peak_bytes(self) -> int:
        """The highest number of bytes alive at any step."""
        return highest(self.memory)

    def readers_of(self, step: int) -> list[int]:
        """Who reads any of a step's outputs."""
        return [r for cell in range(self.cell_at[step], self.cell_at[step + 1]) for r in self.readers[cell]]

    def gap(self, step: int) -> tuple[int, int, int]:
        """First and last-but-one position, and bytes, of what dropping `step` keeps alive."""
        before = self.previous[step]
        shift = self.cell_at[before] - self.cell_at[step]
        first, size = step, 0
        for cell in range(self.cell_at[step], self.cell_at[step + 1]):
            if self.readers[cell]:
                size += self.size[cell]
                kept = self.readers[cell + shift]
                first = min(first, (kept[-1] if kept else before) + 1)
        return first, step, size

    def saving(self, step: int, limit: int = 400) -> float:
        """Seconds that dropping `step` saves: its own and those of steps that served only it."""
        ops, steps, previous, step_of = self.problem.ops, self.steps, self.previous, self.step_of
        total = ops[steps[step]].seconds
        left = {previous[step]: 1 << 60}
        stack = [step]
        for gone in stack:
            for cell in self.sources[gone]:
                source = step_of[cell]
                if previous[source] >= 0:
                    left[source] = reads = left.get(source, self.reads[source]) - 1
                    if not reads and len(stack) < limit:
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
            for cell in self.sources[current]:
                self._lose_reader(cell, current)
                source = self.step_of[cell]
                changed.add(source)
                if not self.reads[source] and self.previous[source] >= 0:
                    gone.append(source)
                    self.memory[source] -= sum(self.size[self.cell_at[source] : self.cell_at[source + 1]])
        return gone, changed.difference(gone)

    def _keep_alive(self, step: int) -> None:
        keeper = self.previous[step]
        shift = self.cell_at[keeper] - self.cell_at[step]
        for cell in range(self.cell_at[step], self.cell_at[step + 1]):
            readers = self.readers[cell]
            if readers:
                kept = self.readers[cell + shift]
                self.memory[(kept[-1] if kept else keeper) + 1 : step] += self.size[cell]
                kept.extend(readers)
                for reader in readers:
                    sources = self.sources.get(reader)
                    if sources is not None:
                        sources[sources.index(cell)] = cell + shift
                self.readers[cell] = []
            else:
                self.memory[step] -= self.size[cell]
        self.reads[keeper] += self.reads[step]
        self.reads[step] = 0

    def _unlink(self, step: int) -> None:
        op = self.problem.ops[self.steps[step]]
        self.memory[step] -= op.workspace_bytes
        self.seconds -= op.seconds
        before, after = self.previous[step], self.next[step]
        self.next[before] = after
        if after >= 0:
            self.previous[after] = before

    def _lose_reader(self, cell: int, reader: int) -> None:
        readers, source = self.readers[cell], self.step_of[cell]
        if readers[-1] == reader:
            readers.pop()
            self.memory[(readers[-1] if readers else source) + 1 : reader + 1] -= self.size[cell]
        else:
            readers.remove(reader)
        self.reads[source] -= 1
