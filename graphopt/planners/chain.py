"""The optimal chain: which stages keep their values, which are computed again, nested.

Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova: Optimal checkpointing for heterogeneous chains
(2019), section 4, theorem 1. A graph becomes a chain at cuts of its forward; what crosses more than
two cuts (U-Net, DenseNet) is kept and counted against the memory of every stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.planners.curve import Curve, CurvePoint, once_per_problem, pareto, pick
from graphopt.planners.none import none_curve
from graphopt.planners.replay import missing_ops
from graphopt.planners.spans import point
from graphopt.planners.stages import Stages, stages_of
from graphopt.problem import Problem
from graphopt.schedule import Schedule

#: Steps in which the dynamic programme counts memory, and budgets at which it is read out.
SLOTS = 250
READ_OUTS = 8

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Table:
    """`seconds[i, j, m]`: least time to run stages i..j and their backward with m slots to spare.

    `held[j, i, m]` is the same for a caller that holds the beginning of stage i as well.
    """

    seconds: Floats
    held: Floats
    #: Time of each stage.
    own: Floats
    #: Time of all stages before each one.
    passed: Floats
    border: npt.NDArray[np.int64]
    saved: npt.NDArray[np.int64]
    forward_need: npt.NDArray[np.int64]
    need: npt.NDArray[np.int64]

    def choice(self, i: int, j: int, m: int) -> int:
        """The first stage after which to come back, or i to keep all of stage i.

        Asked for a few of the table's entries only, so it is found again from the times.
        """
        left = m - int(self.saved[i])
        keep = self.own[i] + self.held[j, i + 1, left] if m >= self.need[i] and left >= 0 else np.inf
        split = self.held[j, i + 1 : j + 1, m] + self.seconds[i, i:j, m] + (self.passed[i + 1 : j + 1] - self.passed[i])
        best = int(split.argmin())
        least = split[best] if m >= self.forward_need[i:j].max() else np.inf
        return i if keep <= least else best + i + 1


def _shift(row: Floats, slots: int, out: Floats) -> Floats:
    """Write to `out` what `row` is for a caller that holds `slots` more."""
    slots = min(slots, len(row))
    out[:slots] = np.inf
    out[slots:] = row[: len(row) - slots]
    return out


def solve(stages: Stages) -> _Table:
    """The dynamic programme, from short ranges of stages to long ones."""
    count = len(stages.border)
    slot = stages.most_bytes() / SLOTS
    need, border, saved = (
        np.rint(x / slot).astype(np.int64) for x in (stages.backward_bytes, stages.border, stages.saved)
    )
    forward_need = np.rint(stages.forward_bytes / slot).astype(np.int64)
    # Only entries with i <= j are written, and only those are read.
    seconds, held = np.empty((2, count, count, SLOTS + 1))
    passed = np.concatenate([[0.0], np.cumsum(stages.seconds)])
    room = np.empty((count, SLOTS + 1))
    for width in range(count):
        for i in range(count - width):
            j = i + width
            own = stages.seconds[i]
            if width == 0:
                seconds[i, i, : need[i]] = np.inf
                seconds[i, i, need[i] :] = own
            else:
                split = np.add(held[j, i + 1 : j + 1], seconds[i, i:j], out=room[:width])
                split += (passed[i + 1 : j + 1] - passed[i])[:, None]
                least = split.min(axis=0, out=seconds[i, j])
                least[: forward_need[i:j].max()] = np.inf
                keep = _shift(held[j, i + 1], int(saved[i]), out=room[0])
                keep += own
                keep[: need[i]] = np.inf
                np.minimum(least, keep, out=least)
            _shift(seconds[i, j], int(border[i]), out=held[j, i])
    return _Table(seconds, held, stages.seconds, passed, border, saved, forward_need, need)


class _Writer:
    """Turns the programme's choices into a schedule of the problem's ops."""

    def __init__(self, problem: Problem, stages: Stages, table: _Table) -> None:
        self.problem, self.stages, self.table = problem, stages, table
        self.border: list[int] = table.border.tolist()
        self.saved: list[int] = table.saved.tolist()
        self.alive = set(stages.pinned)
        self.pending: list[frozenset[int]] = []
        self.schedule: list[int] = []

    def write(self, slots: int) -> list[int]:
        # An explicit stack: a chain of hundreds of stages nests deeper than Python's own.
        stack: list[tuple[str, int, int, int]] = [("run", 0, len(self.border) - 1, slots)]
        while stack:
            kind, i, j, memory = stack.pop()
            if kind == "backward":
                self.backward(i)
            elif kind == "forget":
                self.alive -= self.stages.border_values[i] - self.stages.pinned
            elif i == j:
                self.pass_through()
                self.backward(i)
            else:
                self.split(stack, i, j, memory)
        return self.schedule

    def split(self, stack: list[tuple[str, int, int, int]], i: int, j: int, memory: int) -> None:
        chosen = self.table.choice(i, j, memory)
        after = i + 1 if chosen == i else chosen
        self.pending.append(self.stages.border_values[after])
        left = memory - self.border[after]
        if chosen == i:
            self.pending.append(self.stages.saved_values[i])
            left -= self.saved[i]
            stack.append(("backward", i, i, 0))
        else:
            stack.append(("run", i, after - 1, memory))
        stack.append(("forget", after, after, 0))
        stack.append(("run", after, j, left))

    def pass_through(self) -> None:
        """One pass over the forward that leaves behind what is pending."""
        wanted = set().union(*self.pending)
        if self.schedule:
            self.schedule.extend(missing_ops(self.problem, wanted, self.alive))
        else:
            self.schedule.extend(range(self.stages.end))
            # The last stage's values are there as the backward begins.
            wanted |= self.stages.saved_values[-1]
        self.alive |= wanted
        self.pending.clear()

    def backward(self, stage: int) -> None:
        """The backward ops of a stage; what they miss is computed just before it is read."""
        ops = self.problem.ops
        here: set[int] = set()
        for op_id in self.stages.backward_ops[stage]:
            if any(v not in self.alive and v not in here for v in ops[op_id].inputs):
                for again in missing_ops(self.problem, ops[op_id].inputs, self.alive | here):
                    self.schedule.append(again)
                    here.update(ops[again].outputs)
            self.schedule.append(op_id)
            self.alive.update(ops[op_id].outputs)
        self.alive -= self.stages.saved_values[stage] - self.stages.pinned


def chain_points(problem: Problem) -> list[CurvePoint]:
    """Schedules of the programme at a few memories between its least and its greatest."""
    stages = stages_of(problem)
    if stages is None:
        return []
    table = solve(stages)
    cost = table.seconds[0, -1]
    reachable = np.flatnonzero(np.isfinite(cost))
    if not len(reachable):
        return []
    wanted = np.geomspace(max(1, int(reachable[0])), SLOTS, READ_OUTS)
    memories = sorted({int(np.flatnonzero(cost == cost[max(int(m), int(reachable[0]))])[0]) for m in wanted})
    return [point(problem, _Writer(problem, stages, table).write(m), "chain") for m in memories]


@once_per_problem
def chain_curve(problem: Problem) -> Curve:
    """The chain's schedules, and the one without recomputation."""
    return pareto([*chain_points(problem), *none_curve(problem)])


def plan_chain(problem: Problem, budget_bytes: int) -> Schedule:
    """The fastest chain schedule that fits."""
    return pick(chain_curve(problem), budget_bytes)
