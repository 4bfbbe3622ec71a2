"""From a schedule with little memory upwards: keep, one by one, what saves most seconds per byte."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graphopt.planners.curve import CurvePoint
from graphopt.planners.timeline import Timeline
from graphopt.problem import Problem

Ints = npt.NDArray[np.int64]


class _Rows:
    """The recomputations that can still go: where each would hold memory, and what it would save."""

    def __init__(self, line: Timeline) -> None:
        self.line = line
        again = [step for step, before in enumerate(line.previous) if before >= 0]
        self.step = np.array(again, dtype=np.int64)
        self.row = dict(zip(again, range(len(again)), strict=True))
        gaps = np.array([line.gap(s) for s in again], dtype=np.int64).reshape(-1, 3)
        self.start, self.stop, self.bytes = (np.ascontiguousarray(column) for column in gaps.T)
        self.saving = np.array([line.saving(s) for s in again])
        self.open = np.ones(len(again), dtype=np.bool_)

    def close(self, steps: list[int]) -> None:
        self.open[[self.row[s] for s in steps]] = False

    def update(self, changed: set[int]) -> None:
        """Measure anew what the readers of `changed` steps decide."""
        line = self.line
        for step in changed | {line.next[s] for s in changed}:
            row = self.row.get(step)
            if row is not None:
                self.start[row], self.stop[row], self.bytes[row] = line.gap(step)
        stack = [r for s in changed for readers in line.readers[s].values() for r in readers]
        stack.extend(changed)
        seen: set[int] = set()
        while stack:
            step = stack.pop()
            row = self.row.get(step)
            if row is None or step in seen:
                continue
            seen.add(step)
            saving = line.saving(step)
            if saving != self.saving[row]:
                self.saving[row] = saving
                stack.extend(r for readers in line.readers[step].values() for r in readers)


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


def fill(problem: Problem, seed: CurvePoint, planner: str) -> list[CurvePoint]:
    """The trajectory of `seed` up to the schedule without recomputation, one point a move.

    A greedy for the unsplittable flow on a path: what fits under the present peak goes first, then
    what saves most seconds for the bytes it takes.
    """
    line = Timeline(problem, seed.schedule)
    rows = _Rows(line)
    gone_at = np.full(len(line.steps), np.iinfo(np.int64).max, dtype=np.int64)
    base = np.array(line.steps, dtype=np.int64)
    points: list[CurvePoint] = []
    batch = 1 + len(rows.step) // 256
    move = 0
    while rows.open.any():
        peak = int(line.memory.max())
        live = np.flatnonzero(rows.open)
        size = rows.bytes[live]
        over = np.maximum(range_maxima(line.memory, rows.start[live], rows.stop[live]) + size - peak, 0)
        score = rows.saving[live] / np.maximum((over + size) / 2, 1e-9)
        score[over == 0] *= 1e12
        for row in live[np.argsort(-score, kind="stable")[:batch]].tolist():
            if not rows.open[row]:
                continue
            gone, changed = line.drop(int(rows.step[row]))
            rows.close(gone)
            rows.update(changed)
            gone_at[gone] = move
            points.append(CurvePoint(int(line.memory.max()), line.seconds, planner, base, gone_at, move))
            move += 1
    return points
