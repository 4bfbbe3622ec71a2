"""The inner loops as short Python: what defines them in tests, and what runs where there is no compiler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.planners.native.anneal_round import AnnealRound
from graphopt.planners.native.arrays import Floats, Ints
from graphopt.planners.native.linear_programme import LinearProgramme
from graphopt.planners.native.plain_copies import Recomputation, recomputations, without_idle
from graphopt.planners.native.plain_flow import min_cut
from graphopt.planners.native.plain_lower import lower
from graphopt.planners.native.plain_order import reorder
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import simulate

#: A trajectory whose overhead is this many times that of a known curve, and this share of a step more, ends.
FAR_ABOVE, FAR_ABOVE_STEP = 1.5, 0.01


class PlainLoops:
    """The loops in Python; see `loops.Loops`. Walks, annealing and prices are left out."""

    #: For a curve of 270 ops, with as much tried; with less tried in turn it takes about eight times as long.
    slowness = 30

    def __init__(self, problem: Problem, held: frozenset[int]) -> None:
        self.problem, self.held = problem, held

    def profile(self, schedule: Ints) -> tuple[Ints, int, float]:
        """What the simulator says."""
        result = simulate(self.problem, schedule.tolist())
        return result.live_bytes, result.peak_bytes, result.seconds

    def lower(self, schedule: Ints, target_bytes: int, moves: int, longest: int) -> Ints | None:
        """See `plain_lower.lower`."""
        found = lower(self.problem, self.held, schedule.tolist(), target_bytes, moves, longest)
        return None if found is None else np.array(found, dtype=np.int64)

    def fill(self, schedule: Ints, batches: int, known_peaks: Ints, known_seconds: Floats) -> tuple[Ints, Floats, Ints]:
        """A batch is a move here: those recomputations go that save most seconds per byte that they take.

        What fits under the present peak goes first: a greedy for the unsplittable flow on a path.
        """
        gone_at = np.full(len(schedule), np.iinfo(np.int64).max, dtype=np.int64)
        steps = np.arange(len(schedule))
        peaks, seconds = list[int](), list[float]()
        batch = 1 + (len(schedule) - len(self.problem.ops)) // batches
        memory, peak, taken = self.profile(schedule)
        while (rows := recomputations(self.problem, schedule[steps])) and not self._is_far_above(
            peak, taken, known_peaks, known_seconds
        ):
            rows.sort(key=lambda row: _rate_beyond(row, memory, peak), reverse=True)
            # Of one op a move drops one run at most: what the next one keeps alive would not be known.
            best: dict[int, int] = {}
            for row in rows:
                best.setdefault(row.op, row.step)
            stay = without_idle(self.problem, schedule[steps], set(list(best.values())[:batch]))
            gone_at[np.setdiff1d(steps, steps[stay])] = len(peaks)
            steps = steps[stay]
            memory, peak, taken = self.profile(schedule[steps])
            peaks.append(peak)
            seconds.append(taken)
        return np.array(peaks, dtype=np.int64), np.array(seconds), gone_at

    def _is_far_above(self, peak: int, seconds: float, known_peaks: Ints, known_seconds: Floats) -> bool:
        at = int(np.searchsorted(known_peaks, peak, side="right")) - 1
        once = self.problem.seconds
        return at >= 0 and seconds > once + FAR_ABOVE * (known_seconds[at] - once) + FAR_ABOVE_STEP * once

    def fill_under(self, schedule: Ints, level_bytes: int) -> Ints:
        """In rounds: those first that save most seconds per byte, of one op one run a round."""
        while True:
            memory, gone, ops = self.profile(schedule)[0], set[int](), set[int]()
            rows = recomputations(self.problem, schedule)
            for row in sorted(rows, key=lambda row: row.seconds / max(1, row.bytes), reverse=True):
                kept_over = memory[row.first : row.step]
                if row.op not in ops and int(kept_over.max(initial=0)) + row.bytes <= level_bytes:
                    kept_over += row.bytes
                    gone.add(row.step)
                    ops.add(row.op)
            if not gone:
                return schedule
            schedule = schedule[without_idle(self.problem, schedule, gone)]

    def reorder(self, order: Ints, movable: Ints, passes: int) -> Ints:
        """See `plain_order.reorder`."""
        return reorder(self.problem, order, movable, passes)

    def walk(self, _limit_bytes: int, /) -> Ints | None:
        """Nothing: it pays only as machine code."""
        return None

    def anneal(self, _schedule: Ints, _what: AnnealRound, /) -> tuple[Ints, float] | None:
        """Nothing: it pays only as machine code."""
        return None

    def prices(self, _programme: LinearProgramme, _steps: int, /) -> Floats | None:
        """Nothing: it pays only as machine code."""
        return None

    def min_cut(self, out_at: Ints, out: Ints, to: Ints, room: Ints) -> Sequence[bool]:
        """See `plain_flow.min_cut`."""
        return min_cut(out_at, out, to, room)


def _rate_beyond(row: Recomputation, memory: Ints, peak: int) -> tuple[bool, float]:
    """Whether dropping it leaves the peak as it is, and the seconds that it saves per byte taken."""
    beyond = max(0, int(memory[row.first : row.step].max(initial=0)) + row.bytes - peak)
    return beyond == 0, row.seconds / max((beyond + row.bytes) / 2, 1e-9)
