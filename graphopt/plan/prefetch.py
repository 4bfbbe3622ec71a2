"""Gathers begin early: a parameter travels while what stands before its reader computes, as far as bytes allow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.graph.captured_graph import CapturedGraph
from graphopt.kernels.sharding import ops
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule, simulate


def prefetched(graph: CapturedGraph, schedule: Schedule, budget_bytes: int) -> Schedule:
    """The schedule with each gather so early that it travels behind what runs meanwhile, or as bytes allow.

    Gathers keep their order, as all ranks' must be one; nothing is computed more often. The first run of what only the
    backward reads stays behind the loss.
    """
    step, problem = graph.step, graph.problem
    gathers = frozenset(i for i, op in enumerate(step.ops) if op.node is not None and op.node.target is ops.gather)
    if not gathers:
        return schedule
    moved, live = list(schedule), simulate(problem, schedule).live_bytes.copy()
    for place in range(len(moved)):
        if moved[place] in gathers:
            search = _Search(problem, moved, live, gathers, budget_bytes)
            earliest = search.earliest(place)
            if step.ops[moved[place]].backward:
                earliest = max(earliest, min(moved.index(step.boundary) + 1, place))
            search.move(place, earliest)
    assert simulate(problem, moved).peak_bytes <= max(budget_bytes, simulate(problem, schedule).peak_bytes)
    return tuple(moved)


@dataclass(frozen=True)
class _Search:
    """A schedule that is being changed, and the bytes alive at each of its steps."""

    problem: Problem
    schedule: list[int]
    live_bytes: npt.NDArray[np.int64]
    gathers: frozenset[int]
    budget_bytes: int

    def earliest(self, place: int) -> int:
        """The place to which the gather at `place` may move: it then travels behind enough, or no byte is left.

        The link carries one after the other, so that what travels on the way has to be hidden too.
        """
        op_id = self.schedule[place]
        op = self.problem.ops[op_id]
        own_bytes = sum(self.problem.values[value].bytes for value in op.outputs)
        own_bytes += op.workspace_bytes
        to_hide, hidden, at = op.seconds, 0.0, place
        while at > 0 and hidden < to_hide:
            before = self.schedule[at - 1]
            if before in self.gathers or self._reads(before, op_id):
                break
            if self.live_bytes[at - 1] + own_bytes > self.budget_bytes:
                break
            hidden += self.problem.ops[before].seconds
            at -= 1
        return at

    def move(self, place: int, earlier: int) -> None:
        """Let the op at `place` run at `earlier`; the steps between see what it made."""
        if earlier == place:
            return
        op = self.problem.ops[self.schedule[place]]
        made_bytes = sum(self.problem.values[value].bytes for value in op.outputs)
        between = self.live_bytes[earlier:place].copy()
        # while it runs there is what was alive before the first of them, which its own inputs, resident, add nothing to
        begins = (self.live_bytes[earlier - 1] if earlier else 0) + made_bytes + op.workspace_bytes
        self.live_bytes[earlier] = max(begins, int(between[0]) + made_bytes)
        self.live_bytes[earlier + 1 : place + 1] = between + made_bytes
        self.schedule.insert(earlier, self.schedule.pop(place))

    def _reads(self, op_id: int, gather: int) -> bool:
        """Whether an op reads what an earlier run of the gather made: a second one would take its place."""
        return bool(set(self.problem.ops[op_id].inputs) & set(self.problem.ops[gather].outputs))
