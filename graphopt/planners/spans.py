"""What a schedule keeps alive and when, by whole arrays: the same answer as the simulator's, in a tenth of its time.

Searching looks at some hundred schedules of a problem; each is measured here once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from graphopt.planners.curve import CurvePoint, once_per_problem
from graphopt.planners.replay import held_values
from graphopt.problem import Problem

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class _Layout:
    """A problem as arrays."""

    def __init__(self, problem: Problem) -> None:
        producer = problem.producer
        self.producer = np.array(producer, dtype=np.int64)
        self.size = np.array([value.bytes for value in problem.values], dtype=np.int64)
        self.workspace = np.array([op.workspace_bytes for op in problem.ops], dtype=np.int64)
        self.seconds = np.array([op.seconds for op in problem.ops])
        # Resident values are of no interest: they take no room and never die.
        inputs = [[v for v in op.inputs if producer[v] >= 0] for op in problem.ops]
        outputs, self.output_count = _packed([op.outputs for op in problem.ops])
        #: What each op reads and then makes, and which of those it makes.
        rows = [[*read, *op.outputs] for read, op in zip(inputs, problem.ops, strict=True)]
        self.events, self.event_count = _packed(rows)
        self.event_at = _starts(self.event_count)[:-1]
        self.makes = self.producer[self.events] == np.repeat(np.arange(len(inputs)), self.event_count)
        self.last = np.array([v for v in problem.outputs if producer[v] >= 0], dtype=np.int64)
        #: Place of a value among its op's outputs.
        self.slot = np.zeros(len(problem.values), dtype=np.int64)
        self.slot[outputs] = np.arange(len(outputs)) - _starts(self.output_count)[self.producer[outputs]]
        #: The same as lists, which are faster to read one by one.
        self.sizes: list[int] = self.size.tolist()
        slots: list[int] = self.slot.tolist()
        #: For each op what it reads: the value, its producer, its place there, and its bytes.
        self.reads = [[(v, producer[v], slots[v], self.sizes[v]) for v in read] for read in inputs]
        #: Values that a planner may free, and gains something by it.
        self.free = self.size > 0
        self.free[list(held_values(problem))] = False


def _packed(rows: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    count = np.array([len(row) for row in rows], dtype=np.int64)
    return np.array([v for row in rows for v in row], dtype=np.int64), count


def _starts(count: Ints) -> Ints:
    """Where each of packed rows begins, and the last one ends."""
    at = np.zeros(len(count) + 1, dtype=np.int64)
    np.cumsum(count, out=at[1:])
    return at


@once_per_problem
def _layout(problem: Problem) -> _Layout:
    return _Layout(problem)


def stable_order(keys: Ints, bound: int) -> Ints:
    """Stable order of whole numbers below `bound`: what fits 16 bits is sorted by radix, in a fifth of the time."""
    return np.argsort(keys.astype(np.uint16) if bound <= 1 << 16 else keys, kind="stable")


class Spans:
    """One schedule: for each time a value is produced (a cell) its last read, and the bytes alive at every step."""

    def __init__(self, problem: Problem, schedule: Sequence[int] | Ints) -> None:
        self.problem = problem
        self.layout = layout = _layout(problem)
        self.op = op = np.asarray(schedule, dtype=np.int64)
        self.length = count = len(op)
        each = layout.event_count[op]
        step = np.repeat(np.arange(count), each)
        row = np.arange(len(step)) + (layout.event_at[op] - np.cumsum(each) + each)[step]
        # What is left at the end is read then.
        step = np.concatenate([step, np.full(len(layout.last), count)])
        value = np.concatenate([layout.events[row], layout.last])
        makes = np.zeros(len(value), dtype=np.bool_)
        makes[: len(row)] = layout.makes[row]
        read = np.flatnonzero(~makes)
        self.cell_value, self.cell_step = value[makes], step[makes]
        self.cell_at = _starts(layout.output_count[op])
        #: For each read, in the order of steps, the reading step, and the cell.
        self.read_step = step[read]
        self.read_cell = self._cells(value, makes)[read]
        #: For each cell its last read; the reads come in order, so the last one stays.
        self.last = self.cell_step.copy()
        self.last[self.read_cell] = self.read_step
        self.memory = self._profile()
        self.peak_bytes = highest(self.memory)
        self.seconds = float(layout.seconds[op].sum())

    def _cells(self, value: Ints, makes: npt.NDArray[np.bool_]) -> Ints:
        """For all that happens to values, in the order of steps, the cell: the one made last before it."""
        order = stable_order(value, len(self.layout.size))
        made = makes[order]
        last = np.maximum.accumulate(np.where(made, np.arange(len(made)), 0))
        cells = np.empty_like(order)
        cells[order] = (np.cumsum(makes) - 1)[order[last]]
        return cells

    def _profile(self) -> Ints:
        change = np.zeros(self.length + 2, dtype=np.int64)
        size = self.layout.size[self.cell_value]
        np.add.at(change, self.cell_step, size)
        np.subtract.at(change, self.last + 1, size)
        memory: Ints = np.cumsum(change)[: self.length] + self.layout.workspace[self.op]
        return memory

    def point(self, planner: str) -> CurvePoint:
        """The schedule as a curve point."""
        return CurvePoint(self.peak_bytes, self.seconds, planner, self.op)

    @cached_property
    def source(self) -> Ints:
        """For each read the step that produced the value."""
        return self.cell_step[self.read_cell]

    @cached_property
    def read_at(self) -> Ints:
        """The reads of step `i` are those from `read_at[i]` to `read_at[i + 1]`."""
        return np.searchsorted(self.read_step, np.arange(self.length + 1))

    @cached_property
    def runs(self) -> Ints:
        """Steps sorted by op."""
        return stable_order(self.op, len(self.problem.ops))

    @cached_property
    def previous(self) -> Ints:
        """For each step the one before it that runs the same op, or -1."""
        found = np.full(self.length, -1, dtype=np.int64)
        same = self.op[self.runs[1:]] == self.op[self.runs[:-1]]
        found[self.runs[1:][same]] = self.runs[:-1][same]
        return found

    @cached_property
    def by_cell(self) -> Ints:
        """The reads sorted by cell, those of one cell in the order of steps."""
        return stable_order(self.read_cell, len(self.cell_value))

    def gaps(self) -> tuple[Ints, Ints, Ints]:
        """Value, start and stop of each stretch between two reads in which something could be freed."""
        cell, stop = self.read_cell[self.by_cell], self.read_step[self.by_cell]
        start = self.cell_step[cell]
        again = np.flatnonzero(cell[1:] == cell[:-1]) + 1
        start[again] = stop[again - 1]
        value = self.cell_value[cell]
        wide = (stop - start > 1) & self.layout.free[value]
        return value[wide], start[wide], stop[wide]

    def recomputations(self) -> tuple[Ints, Ints, Ints]:
        """Steps that run an op again; first position, and bytes, of what dropping each would keep alive until it."""
        again = np.flatnonzero(self.previous >= 0)
        first, size = np.arange(self.length), np.zeros(self.length, dtype=np.int64)
        read = np.zeros(len(self.cell_value), dtype=np.bool_)
        read[self.read_cell] = True
        cell = np.flatnonzero(read & (self.previous[self.cell_step] >= 0))
        step, value = self.cell_step[cell], self.cell_value[cell]
        before = self.cell_at[self.previous[step]] + self.layout.slot[value]
        np.minimum.at(first, step, self.last[before] + 1)
        np.add.at(size, step, self.layout.size[value])
        return again, first[again], size[again]

    def savings(self) -> Floats:
        """For each step its seconds and those of recomputations that serve only it."""
        first, last = np.full(self.length + 1, self.length), np.full(self.length + 1, -1)
        np.minimum.at(first, self.source, self.read_step)
        np.maximum.at(last, self.source, self.read_step)
        total: list[float] = self.layout.seconds[self.op].tolist()
        for step in np.flatnonzero(
            (self.previous >= 0) & (first[:-1] == last[:-1]) & (last[:-1] < self.length)
        ).tolist():
            total[last[step]] += total[step]
        return np.array(total)

    def without_idle(self) -> Spans:
        """The schedule without recomputations that nothing reads."""
        idle = (self.previous >= 0) & (np.bincount(self.source, minlength=self.length) == 0)
        return Spans(self.problem, self.op[~idle]).without_idle() if idle.any() else self


def point(problem: Problem, schedule: Sequence[int] | Ints, planner: str) -> CurvePoint:
    """The curve point of one schedule."""
    return Spans(problem, schedule).point(planner)


def highest(memory: Ints) -> int:
    """The greatest element, 0 where there is none: a third of the time of `max` for short arrays."""
    return int(memory.item(memory.argmax())) if len(memory) else 0


def range_maxima(memory: Ints, start: Ints, stop: Ints) -> Ints:
    """Greatest element of each `memory[start:stop]`; 0 where it is empty (a sparse table)."""
    length = np.maximum(stop - start, 1)
    level = np.frexp(length)[1] - 1
    table = np.empty((int(level.max(initial=0)) + 1, len(memory)), dtype=np.int64)
    table[0] = memory
    for k in range(1, len(table)):
        half = 1 << (k - 1)
        np.maximum(table[k - 1, :-half], table[k - 1, half:], out=table[k, :-half])
    found = np.maximum(table[level, start], table[level, np.maximum(stop - (1 << level), 0)])
    return np.where(stop > start, found, 0)
