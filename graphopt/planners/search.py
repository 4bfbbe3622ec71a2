"""Offline eviction: walk the ops under a limit, evict what costs least to have again.

The score is that of Kirisame et al., Dynamic Tensor Rematerialization (2021), section 2, with the
distance to the next use, which is known here, in the place of staleness.
"""

from __future__ import annotations

import numpy as np

from graphopt.planners.curve import Curve, CurvePoint, once_per_problem, pareto, pick, point
from graphopt.planners.fill import fill
from graphopt.planners.none import none_curve
from graphopt.planners.replay import missing_ops
from graphopt.problem import Problem
from graphopt.schedule import Schedule

#: A walk that has computed again this many times what a step costs has lost its way.
GIVE_UP = 4.0
#: Relative change of a price that is not worth carrying on.
TOLERANCE = 0.05
#: Limits that are tried; what each has above the floor, as a share of the one above it.
LEVELS, STEP = 10, 0.7


class _Walk:
    """State of one walk: what is alive, what it would cost to have again, when it is read next."""

    def __init__(self, problem: Problem, limit: int, patience: float) -> None:
        self.problem, self.limit, self.patience = problem, limit, patience
        count = len(problem.values)
        self.size = [value.bytes for value in problem.values]
        self.bytes = np.array(self.size, dtype=np.float64)
        self.uses = [list(reversed(readers)) for readers in problem.readers]
        for value in problem.outputs:
            self.uses[value].insert(0, len(problem.ops))
        self.next_use = np.full(count, len(problem.ops), dtype=np.float64)
        self.alive = {v for v, maker in enumerate(problem.producer) if maker < 0}
        self.live = 0
        self.now = -1
        self.locked = [0] * count
        self.cost = [0.0 if maker < 0 else problem.ops[maker].seconds for maker in problem.producer]
        #: Seconds per byte, and infinity where a value cannot go.
        self.rate = np.full(count, np.inf)
        self.schedule: list[int] = []
        self.extra = 0.0

    def run(self, op_id: int) -> None:
        op = self.problem.ops[op_id]
        born = [v for v in op.outputs if v not in self.alive]
        for value in op.inputs:
            self.rate[value] = np.inf
        self.make_room(sum(self.size[v] for v in born) + op.workspace_bytes)
        self.schedule.append(op_id)
        self.live += sum(self.size[v] for v in born)
        cost = self.price(op_id)
        for value in born:
            self.alive.add(value)
            self.cost[value] = cost
            self.reprice_readers(value)
        for value in op.inputs:
            self.locked[value] -= 1
        for value in (*op.inputs, *op.outputs):
            self.settle(value)

    def make_room(self, needed: int) -> None:
        while self.live + needed > self.limit:
            score = self.rate / (self.next_use - self.now) ** self.patience
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
        elif self.problem.ops[maker].recomputable and self.size[value]:
            self.next_use[value] = uses[-1]
            self.rate[value] = self.cost[value] / self.size[value]

    def free(self, value: int) -> None:
        self.alive.discard(value)
        self.live -= self.size[value]
        self.rate[value], self.next_use[value] = np.inf, len(self.problem.ops)
        self.reprice_readers(value)

    def price(self, op_id: int) -> float:
        """Seconds to have an op's outputs again: the op and what is missing of its inputs, all the way up."""
        problem = self.problem
        total = problem.ops[op_id].seconds
        for value in problem.ops[op_id].inputs:
            if value not in self.alive:
                total += self.cost[value]
        return min(total, problem.seconds)

    def reprice_readers(self, changed: int) -> None:
        """Carry a change of what is alive to the prices of all that was computed from it."""
        problem, stack = self.problem, [changed]
        while stack:
            for reader in problem.readers[stack.pop()]:
                if reader > self.now:
                    break
                cost = self.price(reader)
                for value in problem.ops[reader].outputs:
                    if abs(cost - self.cost[value]) <= TOLERANCE * cost:
                        continue
                    self.cost[value] = cost
                    if value not in self.alive:
                        stack.append(value)
                    elif self.rate[value] < np.inf:
                        self.rate[value] = cost / self.size[value]


def walk(problem: Problem, limit: int, patience: float) -> list[int] | None:
    """A schedule that tries to stay under `limit` bytes; the simulator says whether it does.

    `patience` is the weight of the distance to the next use; None where it recomputes without end.
    """
    state = _Walk(problem, limit, patience)
    allowance = GIVE_UP * problem.seconds
    for op_id, op in enumerate(problem.ops):
        missing = missing_ops(problem, op.inputs, state.alive)
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
    return state.schedule


def lowest_conceivable(problem: Problem) -> int:
    """Bytes that no schedule in this order can do without.

    While an op first runs there are its own values, and of those made before it the outputs and
    whatever cannot be made again and is still to be read.
    """
    ops, size = problem.ops, problem.values
    stuck_until = [-1] * len(size)
    for op in ops:
        for value in op.outputs:
            if not op.recomputable:
                stuck_until[value] = max(problem.readers[value], default=-1)
    outputs = {v for v in problem.outputs if problem.producer[v] >= 0}
    for value in outputs:
        stuck_until[value] = len(ops)
    least, held, leaving = 0, 0, [0] * (len(ops) + 1)
    for op_id, op in enumerate(ops):
        own = {v for v in (*op.inputs, *op.outputs) if problem.producer[v] >= 0}
        # A value that is stuck and was made before is in `held` already.
        new = [v for v in own if stuck_until[v] < op_id or problem.producer[v] == op_id]
        least = max(least, held + op.workspace_bytes + sum(size[v].bytes for v in new))
        for value in op.outputs:
            if stuck_until[value] > op_id:
                held += size[value].bytes
                leaving[stuck_until[value]] += size[value].bytes
        held -= leaving[op_id]
    return least


def walk_points(problem: Problem) -> list[CurvePoint]:
    """One walk for each of a geometric series of limits, downwards until walks no longer get there."""
    peak = none_curve(problem)[0].peak_bytes
    floor = lowest_conceivable(problem)
    points: list[CurvePoint] = []
    for level in range(1, LEVELS + 1):
        limit = floor + int((peak - floor) * STEP**level)
        schedule = walk(problem, limit, 0.5)
        if schedule is None:
            break
        points.append(point(problem, schedule, "search"))
    return points


@once_per_problem
def search_curve(problem: Problem) -> Curve:
    """The walks, and what keeping more makes of each of them."""
    walks = pareto([*walk_points(problem), *none_curve(problem)])
    return pareto([*walks, *(p for seed in walks for p in fill(problem, seed, "search"))])


def plan_search(problem: Problem, budget_bytes: int) -> Schedule:
    """The fastest schedule of the eviction search that fits."""
    return pick(search_curve(problem), budget_bytes)
