"""The optimal chain: which stages keep their values, which are computed again, nested.

Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova: Optimal checkpointing for heterogeneous chains
(2019), section 4, theorem 1. A graph becomes a chain at cuts of its forward; what crosses more than
two cuts (U-Net, DenseNet) is kept and counted against the memory of every stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.planners.curve import Curve, CurvePoint, once_per_problem, pareto, pick, point
from graphopt.planners.none import none_curve
from graphopt.planners.replay import missing_ops
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

    `choice[i, j, m]` is the first stage after which to come back, or i to keep all of stage i.
    """

    seconds: Floats
    choice: npt.NDArray[np.int16]
    slot: float


def _shifted(row: Floats, slots: int) -> Floats:
    """`row` for a caller that holds `slots` more."""
    out = np.full(len(row), np.inf)
    if slots < len(row):
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
    seconds = np.full((count, count, SLOTS + 1), np.inf)
    held = np.full((count, count, SLOTS + 1), np.inf)
    choice = np.full((count, count, SLOTS + 1), -1, dtype=np.int16)
    passed = np.concatenate([[0.0], np.cumsum(stages.seconds)])
    for width in range(count):
        for i in range(count - width):
            j = i + width
            if width == 0:
                seconds[i, i, need[i] :] = stages.seconds[i]
                choice[i, i] = i
            else:
                split = held[i + 1 : j + 1, j] + seconds[i, i:j] + (passed[i + 1 : j + 1] - passed[i])[:, None]
                split[:, : forward_need[i:j].max()] = np.inf
                best = split.argmin(axis=0)
                least = np.take_along_axis(split, best[None], axis=0)[0]
                keep = stages.seconds[i] + _shifted(held[i + 1, j], int(saved[i]))
                keep[: need[i]] = np.inf
                seconds[i, j] = np.minimum(least, keep)
                choice[i, j] = np.where(keep <= least, i, best + i + 1)
            held[i, j] = _shifted(seconds[i, j], int(border[i]))
    return _Table(seconds, choice, slot)


class _Writer:
    """Turns the programme's choices into a schedule of the problem's ops."""

    def __init__(self, problem: Problem, stages: Stages, table: _Table) -> None:
        self.problem, self.stages, self.table = problem, stages, table
        self.border = [round(x / table.slot) for x in stages.border]
        self.saved = [round(x / table.slot) for x in stages.saved]
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
        chosen = int(self.table.choice[i, j, memory])
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
