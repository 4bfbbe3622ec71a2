"""Minimum cuts at ever higher prices for the bytes that are kept over the highest step.

What is cut at ever higher prices is the lower hull of seconds over bytes (a Lagrangian relaxation of the
knapsack; Geoffrion 1974); what such a schedule really takes is for the simulator to say.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graphopt.planners.curves.curve import Curve, pareto, pick
from graphopt.planners.curves.effort import effort_for
from graphopt.planners.moves.cuts import Cutter, cutter_at, keeping
from graphopt.planners.native.arrays import Floats
from graphopt.planners.none import none_curve
from graphopt.planners.schedules.memory_profile import in_own_order
from graphopt.planners.study.study import Study, once_per_study
from graphopt.problem.schedule import Schedule

#: The first price (of keeping all that can be kept, as a share of a step), and how many there are at most.
FIRST_PRICE, MOST_PRICES = 1e-3, 60
#: Prices need not rise any more where less than this share is kept.
LITTLE = 0.01


def sweep(cutter: Cutter, shape: Floats) -> Iterator[frozenset[int]]:
    """What is kept at ever higher prices in the proportions of `shape`, each choice once."""
    sizes = cutter.problem.values
    most = sum(sizes[v].bytes for v in cutter.late)
    price = FIRST_PRICE / max(1, most)
    ratio = effort_for(cutter.study).price_ratio
    before: frozenset[int] | None = None
    for _ in range(MOST_PRICES):
        kept = cutter.cut(price * shape)
        if kept != before:
            yield kept
        if sum(sizes[v].bytes for v in kept) <= LITTLE * most:
            return
        before = kept
        price *= ratio


def shapes(study: Study, split: int) -> list[Floats]:
    """Proportions of the steps' prices: each that is over half of the peak has one; only the split has."""
    line = in_own_order(study)
    above: Floats = np.maximum(2 * line.live_bytes / max(1, line.peak_bytes) - 1, 0.0)
    if not effort_for(study).price_alone:
        return [above]
    alone = np.zeros(len(line.steps))
    alone[split] = 1.0
    return [alone, above]


@once_per_study
def mincut_curve(study: Study) -> Curve:
    """Cuts at the highest step of the problem's own order."""
    split = int(in_own_order(study).live_bytes.argmax())
    cutter = cutter_at(study, split)
    points = [keeping(study, split, kept) for shape in shapes(study, split) for kept in sweep(cutter, shape)]
    return pareto([*points, *none_curve(study)])


def plan_mincut(study: Study, budget_bytes: int) -> Schedule:
    """The fastest of the cuts' schedules that fits; raises InfeasibleError where none does."""
    return pick(mincut_curve(study), budget_bytes)
