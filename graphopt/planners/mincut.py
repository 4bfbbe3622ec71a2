"""What to keep across one step, at prices for the bytes of every step: minimum cuts.

PyTorch's partitioner cuts the joint graph where fewest bytes are saved, then bans dear ops from being
computed again. Here what is computed again stands in the cut with its seconds, and what is kept with
its bytes at the price of those steps for which it is kept: one cut is the exact optimum of
seconds + price * bytes kept for schedules that compute each op at most once more. What is cut at ever
higher prices is the lower hull of seconds over bytes (a Lagrangian relaxation of the knapsack); what
such a schedule really takes is for the simulator to say.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from graphopt.planners.curves.curve import Curve, CurvePoint, once_per_problem, pareto, pick
from graphopt.planners.curves.effort import effort_for
from graphopt.planners.none import none_curve
from graphopt.planners.schedules.flow import Network
from graphopt.planners.schedules.replay import held_values
from graphopt.planners.schedules.replay_once import recompute_once
from graphopt.planners.schedules.spans import Spans, point
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule

Floats = npt.NDArray[np.float64]

#: Seconds are whole numbers of this share of a step's, so that flows are exact; a price that not all ops are worth.
GRAIN, TOO_DEAR = 1e-12, 10**15
#: The first price (of keeping all that can be kept, as a share of a step), and how many there are at most.
FIRST_PRICE, MOST_PRICES = 1e-3, 60
#: Prices need not rise any more where less than this share is kept.
LITTLE = 0.01


class Cutter:
    """Keep or compute again, for the values made before op `split` that are read from it on.

    Op `i` before the split is node `2 + i` of a network, value `v` is node `2 + split + v`. A node on
    the source's side is wanted again after the split. An op there pays its seconds; a value there
    whose op is not pays its bytes, since it must have been kept.
    """

    def __init__(self, problem: Problem, split: int) -> None:
        self.problem, self.split = problem, split
        count = len(problem.ops)
        self.held = held_values(problem)
        wanted = {v for op in problem.ops[split:] for v in op.inputs} | set(problem.outputs)
        #: Values that are read after the split and may be gone until then.
        self.late = {v for v in wanted if 0 <= problem.producer[v] < split} - self.held
        #: For each value its last step before the split, and the first one from it on that needs it.
        self.last = np.zeros(len(problem.values), dtype=np.int64)
        self.need = np.full(len(problem.values), count, dtype=np.int64)
        for value in self.late:
            self.need[value] = min((r for r in problem.readers[value] if r >= split), default=count)
        self.network = Network(2 + split + len(problem.values))
        self.priced: dict[int, int] = {}
        for op_id in reversed(range(split)):
            self._add(op_id)
        self.edges = np.array(list(self.priced), dtype=np.int64)
        self.values = np.array(list(self.priced.values()), dtype=np.int64)
        self.size = np.array([problem.values[v].bytes for v in self.priced.values()], dtype=np.float64)

    def _add(self, op_id: int) -> None:
        """An op's edges; those of the ops that read what it makes are there."""
        problem, split, network, late, held = self.problem, self.split, self.network, self.late, self.held
        op, need = problem.ops[op_id], self.need
        for value in op.outputs:
            self.last[value] = max((r for r in problem.readers[value] if r < split), default=op_id)
        if not op.recomputable:
            return
        network.edge(2 + op_id, 1, round(op.seconds / (GRAIN * problem.seconds)) if op.seconds else 0)
        for value in op.outputs:
            if value not in held:
                tail = 0 if value in late else 2 + split + value
                self.priced[network.edge(tail, 2 + op_id, 0)] = value
        soonest = min(int(need[v]) for v in op.outputs) if op.outputs else len(problem.ops)
        for value in op.inputs:
            if problem.producer[value] >= 0 and value not in held and value not in late:
                need[value] = min(int(need[value]), soonest)
                network.edge(2 + op_id, 2 + split + value, TOO_DEAR)

    def cut(self, prices: Floats) -> frozenset[int]:
        """What to keep, at a price for each op's step in (shares of the problem's seconds) per byte."""
        total = np.concatenate([[0.0], np.cumsum(prices)])
        stop = np.maximum(self.need[self.values], self.split + 1)
        cost = self.size * (total[stop] - total[self.last[self.values] + 1]) / GRAIN
        self.network.price(self.edges, np.minimum(cost, TOO_DEAR).astype(np.int64))
        again = self.network.source_side()
        made = [op_id for op_id in range(self.split) if not again[2 + op_id]]
        outputs = (v for op_id in made for v in self.problem.ops[op_id].outputs)
        return frozenset(v for v in outputs if v in self.late or again[2 + self.split + v])


@once_per_problem
def _cutters(_: Problem) -> dict[int, Cutter]:
    return {}


def cutter_at(problem: Problem, split: int) -> Cutter:
    """The problem's cutter at a step; building one takes as long as some cuts."""
    known = _cutters(problem)
    if split not in known:
        known[split] = Cutter(problem, split)
    return known[split]


def sweep(cutter: Cutter, shape: Floats) -> Iterator[frozenset[int]]:
    """What is kept at ever higher prices in the proportions of `shape`, each choice once."""
    sizes = cutter.problem.values
    most = sum(sizes[v].bytes for v in cutter.late)
    price = FIRST_PRICE / max(1, most)
    ratio = effort_for(cutter.problem).price_ratio
    before: frozenset[int] | None = None
    for _ in range(MOST_PRICES):
        kept = cutter.cut(price * shape)
        if kept != before:
            yield kept
        if sum(sizes[v].bytes for v in kept) <= LITTLE * most:
            return
        before = kept
        price *= ratio


def shapes(problem: Problem, split: int) -> list[Floats]:
    """Proportions of the steps' prices: each that is over half of the peak has one; only the split has."""
    alive = Spans(problem, range(len(problem.ops))).memory
    above: Floats = np.maximum(2 * alive / max(1, int(alive.max())) - 1, 0.0)
    if not effort_for(problem).price_alone:
        return [above]
    alone = np.zeros(len(problem.ops))
    alone[split] = 1.0
    return [alone, above]


def keeping(problem: Problem, split: int, kept: frozenset[int]) -> CurvePoint:
    """The schedule that keeps these values, and computes all else again when it is first read."""
    return point(problem, recompute_once(problem, split, kept), "mincut")


@once_per_problem
def mincut_curve(problem: Problem) -> Curve:
    """Cuts at the highest step of the problem's own order."""
    split = Spans(problem, range(len(problem.ops))).memory.argmax()
    cutter = cutter_at(problem, int(split))
    points = [keeping(problem, cutter.split, kept) for s in shapes(problem, cutter.split) for kept in sweep(cutter, s)]
    return pareto([*points, *none_curve(problem)])


def plan_mincut(problem: Problem, budget_bytes: int) -> Schedule:
    """The fastest of the cuts' schedules that fits."""
    return pick(mincut_curve(problem), budget_bytes)
