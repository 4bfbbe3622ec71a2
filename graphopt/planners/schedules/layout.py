"""A problem as arrays, and the cells of a schedule: each time that a value is produced, and who reads it then."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from graphopt.planners.curves.curve import once_per_problem
from graphopt.planners.schedules.replay import held_values
from graphopt.problem.problem import Problem

Ints = npt.NDArray[np.int64]


class Layout:
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
def layout_of(problem: Problem) -> Layout:
    return Layout(problem)


def stable_order(keys: Ints, bound: int) -> Ints:
    """Stable order of whole numbers below `bound`: what fits 16 bits is sorted by radix, in a fifth of the time."""
    return np.argsort(keys.astype(np.uint16) if bound <= 1 << 16 else keys, kind="stable")


class Cells:
    """The cells of a schedule and their reads: the cells of step `i` are `at[i]` to `at[i + 1]`."""

    def __init__(self, layout: Layout, op: Ints) -> None:
        count = len(op)
        each = layout.event_count[op]
        step = np.repeat(np.arange(count), each)
        row = np.arange(len(step)) + (layout.event_at[op] - np.cumsum(each) + each)[step]
        # What is left at the end is read then.
        step = np.concatenate([step, np.full(len(layout.last), count)])
        value = np.concatenate([layout.events[row], layout.last])
        makes = np.zeros(len(value), dtype=np.bool_)
        makes[: len(row)] = layout.makes[row]
        read = np.flatnonzero(~makes)
        self.value, self.step = value[makes], step[makes]
        self.at = _starts(layout.output_count[op])
        #: For each read, in the order of steps, the reading step, and the cell.
        self.read_step = step[read]
        self.read_cell = self._cells(value, makes, len(layout.size))[read]
        #: For each cell its last read; the reads come in order, so the last one stays.
        self.last = self.step.copy()
        self.last[self.read_cell] = self.read_step

    @staticmethod
    def _cells(value: Ints, makes: npt.NDArray[np.bool_], values: int) -> Ints:
        """For all that happens to values, in the order of steps, the cell: the one made last before it."""
        order = stable_order(value, values)
        made = makes[order]
        last = np.maximum.accumulate(np.where(made, np.arange(len(made)), 0))
        cells = np.empty_like(order)
        cells[order] = (np.cumsum(makes) - 1)[order[last]]
        return cells
