"""What to keep across one step, at prices for the bytes of every step: minimum cuts.

PyTorch's partitioner cuts the joint graph where fewest bytes are saved, then bans dear ops from being
computed again. Here what is computed again stands in the cut with its seconds, and what is kept with
its bytes at the price of those steps for which it is kept: one cut is the exact optimum of
seconds + price * bytes kept for schedules that compute each op at most once more.
"""

from __future__ import annotations

import numpy as np

from graphopt.planners.curves.curve import CurvePoint
from graphopt.planners.native.arrays import Floats
from graphopt.planners.schedules.flow import Network
from graphopt.planners.schedules.memory_profile import point
from graphopt.planners.schedules.recompute import recompute_once
from graphopt.planners.study.study import Study, once_per_study

#: Seconds are whole numbers of this share of a step's, so that flows are exact; a price that not all ops are worth.
GRAIN, TOO_DEAR = 1e-12, 10**15


class Cutter:
    """Keep or compute again, for the values made before op `split` that are read from it on.

    Op `i` before the split is node `2 + i` of a network, value `v` is node `2 + split + v`. A node on
    the source's side is wanted again after the split. An op there pays its seconds; a value there
    whose op is not pays its bytes, since it must have been kept.
    """

    def __init__(self, study: Study, split: int) -> None:
        self.study, self.problem, self.split, self.held = study, study.problem, split, study.held
        problem, count = self.problem, len(self.problem.ops)
        wanted = {v for op in problem.ops[split:] for v in op.inputs} | set(problem.outputs)
        #: Values that are read after the split and may be gone until then.
        self.late = {v for v in wanted if 0 <= problem.producer[v] < split} - self.held
        #: For each value its last step before the split, and the first one from it on that needs it.
        self.last = np.zeros(len(problem.values), dtype=np.int64)
        self.need = np.full(len(problem.values), count, dtype=np.int64)
        for value in self.late:
            self.need[value] = min((r for r in problem.readers[value] if r >= split), default=count)
        self.network = Network(study, 2 + split + len(problem.values))
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


@once_per_study
def _cutters(_: Study) -> dict[int, Cutter]:
    return {}


def cutter_at(study: Study, split: int) -> Cutter:
    """The cutter at a step, which the study keeps: building one takes as long as some cuts."""
    known = _cutters(study)
    if split not in known:
        known[split] = Cutter(study, split)
    return known[split]


def keeping(study: Study, split: int, kept: frozenset[int]) -> CurvePoint:
    """The schedule that keeps these values over the split, and computes all else again when it is first read."""
    return point(study, recompute_once(study, split, kept), "mincut")
