"""What memory at one step costs: the least recomputation that a schedule owes to it.

While op `t` runs for the first time, each value that was made before and is read after either is kept,
or its op runs again after `t`; an op that runs again reads values that are kept or are made again too.
To keep the cheapest choice inside the budget is a knapsack over a closure. With a price per byte in the
place of the budget (Lagrangian relaxation; Geoffrion 1974) it is a minimum cut, in the network in which
PyTorch's partitioner looks for what to save, and so each price gives a lower bound that is proven.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from graphopt.planners.schedules.flow import SINK, SOURCE, Network
from graphopt.planners.study.study import Study

#: Whole numbers into which the seconds of a step are cut, more than any cut is worth, and most of all prices together.
PARTS, ENDLESS, MOST = 1 << 40, 1 << 62, 1 << 61
#: Cuts that looking for the best price may take.
CUTS = 12


@dataclass(frozen=True)
class PricedCut:
    """The bound in seconds at `price` (seconds a byte), and how it changes with the price (bytes)."""

    price: float
    seconds: float
    slope_bytes: float

    def at(self, price: float) -> float:
        """What the tangent says elsewhere: the bound in seconds is at most that."""
        return self.seconds + self.slope_bytes * (price - self.price)


class StepModel:
    """The choice at one step: `wanted` values that were made before it are read later, or are outputs."""

    def __init__(self, study: Study, step: int, wanted: Iterable[int], budget_bytes: int) -> None:
        problem = study.problem
        op = problem.ops[step]
        self.problem = problem
        self.own = {v for v in (*op.inputs, *op.outputs) if problem.producer[v] >= 0}
        self.room_bytes = budget_bytes - op.workspace_bytes - sum(problem.values[v].bytes for v in self.own)
        self.wanted = [v for v in wanted if self._takes_room(v)]
        self.part_seconds = max(problem.seconds, 1e-300) / PARTS
        self._build(study)

    @property
    def impossible(self) -> bool:
        """Whether what must be there takes more than the budget, whatever runs again."""
        ops, maker = self.problem.ops, self.problem.producer
        stuck = [v for v in self.wanted if not ops[maker[v]].recomputable]
        return sum(self.problem.values[v].bytes for v in stuck) > self.room_bytes

    def _takes_room(self, value: int) -> bool:
        return self.problem.producer[value] >= 0 and self.problem.values[value].bytes > 0 and value not in self.own

    def _build(self, study: Study) -> None:
        """Source → wanted values –(price × bytes)→ their ops –(seconds)→ sink; ops → values that they read."""
        ops, values, maker = self.problem.ops, self.problem.values, self.problem.producer
        first_op = 2 + len(values)
        self.network = network = Network(study, first_op + len(ops))
        self.sources = [network.edge(SOURCE, 2 + value, ENDLESS) for value in self.wanted]
        #: For each value that may be kept its edge and bytes.
        self.keep: dict[int, int] = {}
        stack, seen = list(self.wanted), set(self.wanted)
        made: set[int] = set()
        for value in stack:
            op_id = maker[value]
            self.keep[network.edge(2 + value, first_op + op_id, 0)] = values[value].bytes
            if op_id in made:
                continue
            made.add(op_id)
            op = ops[op_id]
            network.edge(first_op + op_id, SINK, int(op.seconds / self.part_seconds) if op.recomputable else ENDLESS)
            for needed in op.inputs if op.recomputable else ():
                if self._takes_room(needed):
                    network.edge(first_op + op_id, 2 + needed, ENDLESS)
                    if needed not in seen:
                        seen.add(needed)
                        stack.append(needed)
        self.edges = np.array(list(self.keep), dtype=np.int64)
        self.sizes = np.array(list(self.keep.values()), dtype=np.float64)

    def cut(self, price: float) -> PricedCut:
        """The bound at one price. Whole numbers are rounded down, so that it stays one."""
        network, parts = self.network, price / self.part_seconds
        prices = np.minimum(parts * self.sizes, MOST / max(1, len(self.edges)))
        network.price(self.edges, prices.astype(np.int64))
        side = network.source_side()
        kept = sum(
            size for edge, size in self.keep.items() if side[network.to[edge ^ 1]] and not side[network.to[edge]]
        )
        flow = int((network.capacity[self.sources] - network.room[self.sources]).sum())
        return PricedCut(price, self.part_seconds * flow - price * self.room_bytes, float(kept - self.room_bytes))

    def best(self, price: float, enough_seconds: float) -> PricedCut:
        """The best bound over all prices, to `enough_seconds`; `price` is the first one tried."""
        low = best = PricedCut(
            0.0, 0.0, float(sum(self.problem.values[v].bytes for v in self.wanted) - self.room_bytes)
        )
        high: PricedCut | None = None
        for _ in range(CUTS if low.slope_bytes > 0 else 0):
            found = self.cut(price)
            best = max(best, found, key=lambda cut: cut.seconds)
            if found.slope_bytes > 0:
                low = found
            else:
                high = found
            if high is None:
                price *= 4
                continue
            # Where the two tangents meet; nowhere is the bound above that point.
            price = (high.at(0.0) - low.at(0.0)) / (low.slope_bytes - high.slope_bytes)
            if low.at(price) <= best.seconds + enough_seconds:
                break
        return best
