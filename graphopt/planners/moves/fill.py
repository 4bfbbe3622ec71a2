"""From a schedule with little memory upwards: keep, one by one, what saves most seconds per byte."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from graphopt.planners.curves.curve import Curve, CurvePoint
from graphopt.planners.native import native_for
from graphopt.planners.schedules.spans import Spans, highest, range_maxima
from graphopt.planners.schedules.timeline import Timeline
from graphopt.problem.problem import Problem

#: A trajectory whose overhead is this many times that of a known curve, and this share of a step more, ends.
FAR_ABOVE, FAR_ABOVE_STEP = 1.5, 0.01

Ints = npt.NDArray[np.int64]


class _Rows:
    """The recomputations that can still go: where each would hold memory, and what it would save."""

    def __init__(self, spans: Spans) -> None:
        self.line = line = Timeline(spans)
        self.step, self.start, self.bytes = spans.recomputations()
        self.stop = self.step.copy()
        again = self.step.tolist()
        self.row = dict(zip(again, range(len(again)), strict=True))
        self.saving = np.array([line.saving(s) for s in again])
        self.open = np.ones(len(again), dtype=np.bool_)
        #: Steps whose readers changed since the rows were measured.
        self.stale: set[int] = set()

    def reach(self, rows: Ints) -> Ints:
        """The highest that memory would get in each row's gap."""
        reached: Ints = range_maxima(self.line.memory, self.start[rows], self.stop[rows]) + self.bytes[rows]
        return reached

    def fits(self, row: int, level: int) -> bool:
        """Whether dropping one row leaves memory in its gap at or under `level`; needs no `refresh`."""
        start, stop, size = self.line.gap(int(self.step[row]))
        return highest(self.line.memory[start:stop]) + size <= level

    def drop(self, row: int) -> list[int]:
        """Drop a recomputation; all steps that went with it. The other rows are as they were until `refresh`."""
        gone, changed = self.line.drop(int(self.step[row]))
        self.open[[self.row[s] for s in gone]] = False
        self.stale |= changed
        return gone

    def refresh(self) -> None:
        """Measure anew what the readers of changed steps decide."""
        line, row_of, still = self.line, self.row, self.open.tolist()
        for step in self.stale | {line.next[s] for s in self.stale}:
            row = row_of.get(step)
            if row is not None and still[row]:
                self.start[row], self.stop[row], self.bytes[row] = line.gap(step)
        stack = [r for s in self.stale for r in line.readers_of(s)]
        stack.extend(self.stale)
        self.stale.clear()
        seen: set[int] = set()
        while stack:
            step = stack.pop()
            row = row_of.get(step)
            if row is None or step in seen or not still[row]:
                continue
            seen.add(step)
            saving = line.saving(step)
            if saving != self.saving[row]:
                self.saving[row] = saving
                stack.extend(line.readers_of(step))


def hopeless(problem: Problem, known: Curve) -> Callable[[int, float], bool]:
    """Whether a trajectory at so many bytes and seconds is too far above a known curve to get below it."""
    peaks = [p.peak_bytes for p in known]

    def beaten(peak: int, seconds: float) -> bool:
        at = bisect_right(peaks, peak) - 1
        if at < 0:
            return False
        best = known[at].seconds
        return seconds > best + (FAR_ABOVE - 1) * (best - problem.seconds) + FAR_ABOVE_STEP * problem.seconds

    return beaten


def fill(problem: Problem, seed: CurvePoint, planner: str, batches: int = 96, known: Curve = ()) -> list[CurvePoint]:
    """The trajectory of `seed` up to the schedule without recomputation, one point a move.

    Moves are made in `batches` batches at the least. It ends early where it is far above the `known`
    curve. A greedy for the unsplittable flow on a path: what fits under the present peak goes first,
    then what saves most seconds for the bytes it takes.
    """
    native = native_for(problem)
    if native is not None:
        base = seed.steps
        known_peaks = np.array([p.peak_bytes for p in known], dtype=np.int64)
        known_seconds = np.array([p.seconds for p in known])
        peaks, seconds, gone_at = native.fill(base, batches, known_peaks, known_seconds)
        moves = zip(peaks.tolist(), seconds.tolist(), strict=True)
        return [CurvePoint(peak, taken, planner, base, gone_at, at) for at, (peak, taken) in enumerate(moves)]
    rows = _Rows(Spans(problem, seed.steps))
    line = rows.line
    base = np.array(line.steps, dtype=np.int64)
    gone_at = np.full(len(base), np.iinfo(np.int64).max, dtype=np.int64)
    points: list[CurvePoint] = []
    beaten = hopeless(problem, known)
    batch = 1 + len(rows.step) // batches
    while rows.open.any() and not beaten(line.peak_bytes, line.seconds):
        rows.refresh()
        peak = line.peak_bytes
        live = np.flatnonzero(rows.open)
        size = rows.bytes[live]
        over = np.maximum(rows.reach(live) - peak, 0)
        score = rows.saving[live] / np.maximum((over + size) / 2, 1e-9)
        score[over == 0] *= 1e12
        for row in live[np.argsort(-score, kind="stable")[:batch]].tolist():
            if rows.open[row]:
                gone_at[rows.drop(row)] = len(points)
                points.append(CurvePoint(line.peak_bytes, line.seconds, planner, base, gone_at, len(points)))
    return points


def fill_under(spans: Spans, level: int) -> Spans:
    """`spans` without those recomputations that can go while its peak stays under `level`."""
    native = native_for(spans.problem)
    if native is not None:
        filled = native.fill_under(spans.op, level)
        return spans if filled is None else Spans(spans.problem, filled)
    while True:
        again, start, size = spans.recomputations()
        # Most do not fit at the ends of their gaps already.
        ends = np.maximum(spans.memory[start], spans.memory[again - 1]) * (start < again)
        live = np.flatnonzero(ends + size <= level)
        live = live[range_maxima(spans.memory, start[live], again[live]) + size[live] <= level]
        if not len(live):
            return spans
        memory, gone = spans.memory.copy(), []
        # Of one op a round drops one run at most: what the next one keeps alive would not be known.
        ops: set[int] = set()
        score = spans.savings()[again[live]] / np.maximum(size[live], 1)
        for row in live[np.argsort(-score, kind="stable")].tolist():
            gap, op_id = memory[start[row] : again[row]], int(spans.op[again[row]])
            if op_id not in ops and highest(gap) + size[row] <= level:
                gap += size[row]
                gone.append(int(again[row]))
                ops.add(op_id)
        spans = Spans(spans.problem, np.delete(spans.op, gone)).without_idle()
