"""Offline eviction: walk the ops under a limit, evict what costs least to have again.

The score is that of Kirisame et al., Dynamic Tensor Rematerialization (2021), section 2, with the
root of the distance to the next use, which is known here, in the place of staleness.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from graphopt.planners.native import native_for
from graphopt.planners.schedules.replay import held_values, missing_ops, pinned_values
from graphopt.problem.problem import Problem

#: A walk that has computed again this many times what a step costs has lost its way.
GIVE_UP = 4.0
#: Relative change of a price that is not worth carrying on.
TOLERANCE = 0.2


class _Walk:
    """State of one walk: what is alive, what it would cost to have again, when it is read next."""

    def __init__(self, problem: Problem, limit: int) -> None:
        self.problem, self.limit = problem, limit
        count, made = len(problem.values), problem.producer
        self.size = [value.bytes for value in problem.values]
        self.uses = [list(reversed(readers)) for readers in problem.readers]
        for value in problem.outputs:
            self.uses[value].insert(0, len(problem.ops))
        self.next_use = np.full(count, len(problem.ops), dtype=np.float64)
        self.alive = {v for v, maker in enumerate(problem.producer) if maker < 0}
        self.pinned = pinned_values(problem)
        self.fixed = held_values(problem) | set(problem.outputs)
        self.let_go: set[int] = set()
        self.live = 0
        self.now = -1
        self.locked = [0] * count
        self.cost = [0.0 if maker < 0 else problem.ops[maker].seconds for maker in problem.producer]
        #: What each value adds to the price of those computed from it: nothing while it is alive.
        self.owed = self.cost.copy()
        self.table = [(op.seconds, tuple(v for v in op.inputs if made[v] >= 0), op.outputs) for op in problem.ops]
        #: Seconds per byte, and infinity where a value cannot go.
        self.rate = np.full(count, np.inf)
        self.schedule: list[int] = []

    def run(self, op_id: int) -> None:
        op = self.problem.ops[op_id]
        born = [v for v in op.outputs if v not in self.alive]
        made = sum([self.size[v] for v in born])
        for value in op.inputs:
            self.rate[value] = np.inf
        self.make_room(made + op.workspace_bytes)
        self.schedule.append(op_id)
        self.live += made
        cost = self.price(op_id)
        for value in born:
            self.alive.add(value)
            self.cost[value], self.owed[value] = cost, 0.0
            self.reprice_readers(value)
        for value in op.inputs:
            self.locked[value] -= 1
        for value in (*op.inputs, *op.outputs):
            self.settle(value)

    def make_room(self, needed: int) -> None:
        while self.live + needed > self.limit:
            score = self.rate / np.sqrt(self.next_use - self.now)
            victim = int(score.argmin())
            if score[victim] == np.inf:
                return
            self.free(victim)

    def settle(self, value: int) -> None:
        """Free a value that nothing will read; otherwise say what its eviction would cost."""
        maker = self.problem.producer[value]
        if maker < 0 or self.locked[value]:
            return
        uses = self.uses[value]
        while uses and uses[-1] <= self.now:
            uses.pop()
        if not uses:
            self.free(value)
        elif value not in self.fixed and self.size[value]:
            self.next_use[value] = uses[-1]
            self.rate[value] = self.cost[value] / self.size[value]

    def free(self, value: int) -> None:
        if value not in self.pinned:
            self.alive.discard(value)
            self.owed[value] = self.cost[value]
            self.live -= self.size[value]
        elif value not in self.let_go:
            # What cannot be made again stays within reach; a recomputation that reads it makes it live longer.
            self.let_go.add(value)
            self.live -= self.size[value]
        self.rate[value], self.next_use[value] = np.inf, len(self.problem.ops)
        self.reprice_readers(value)

    def price(self, op_id: int) -> float:
        """Seconds to have an op's outputs again: the op and what is missing of its inputs, all the way up."""
        total, inputs, _ = self.table[op_id]
        for value in inputs:
            total += self.owed[value]
        return min(total, self.problem.seconds)

    def reprice_readers(self, changed: int) -> None:
        """Carry a change of what is alive to the prices of all that was computed from it."""
        readers, table, alive, costs, owed = self.problem.readers, self.table, self.alive, self.cost, self.owed
        now, most, stack = self.now, self.problem.seconds, [changed]
        while stack:
            for reader in readers[stack.pop()]:
                if reader > now:
                    break
                # What `price` says, written out: most of a walk's time is spent here.
                cost, inputs, outputs = table[reader]
                for value in inputs:
                    cost += owed[value]
                cost = cost if cost < most else most
                slack = TOLERANCE * cost
                for value in outputs:
                    if -slack <= cost - costs[value] <= slack:
                        continue
                    costs[value] = cost
                    if value not in alive:
                        owed[value] = cost
                        stack.append(value)
                    elif self.rate.item(value) < math.inf:
                        self.rate[value] = cost / self.size[value]


def walk(problem: Problem, limit: int) -> npt.NDArray[np.int64] | None:
    """A schedule that tries to stay under `limit` bytes; the simulator says whether it does.

    None where it recomputes without end.
    """
    native = native_for(problem)
    if native is not None:
        return native.walk(limit)
    state = _Walk(problem, limit)
    allowance = GIVE_UP * problem.seconds
    for op_id, op in enumerate(problem.ops):
        missing = [] if state.alive.issuperset(op.inputs) else missing_ops(problem, op.inputs, state.alive)
        for needed in (*missing, op_id):
            for value in problem.ops[needed].inputs:
                state.locked[value] += 1
                state.rate[value] = np.inf
        for again in missing:
            allowance -= problem.ops[again].seconds
            state.run(again)
        state.now = op_id
        state.run(op_id)
        if allowance < 0:
            return None
    return np.array(state.schedule, dtype=np.int64)
