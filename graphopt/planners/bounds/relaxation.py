"""Lower bounds of a linear programme with variables between 0 and 1, proven by prices on its rows."""

from __future__ import annotations

import numpy as np

from graphopt.planners.native.arrays import Floats
from graphopt.planners.native.linear_programme import LinearProgramme

#: Rounding of sums, as a share of what is summed.
ROUNDING = 1e-12


def proven(programme: LinearProgramme, prices: Floats) -> float:
    """Costs that no `x` is below, in the programme's own unit, by prices on its rows that are 0 or more.

    `costs x >= costs x + prices (A x - limits)`, as no row is above its limit, and the right side is least
    where each variable is at one of its ends: weak duality. That holds for any prices; what rounding may
    have added is taken off.
    """
    assert (prices >= 0).all(), "a price on a row that holds is none"
    entries, count = prices[programme.row], len(programme.costs)
    charge = programme.costs + np.bincount(programme.column, programme.factor * entries, count)
    paid = prices * programme.limits
    summed = np.bincount(programme.column, np.abs(programme.factor) * entries, count).sum() + programme.costs.sum()
    least = float(np.minimum(charge, charge * programme.least).sum() - paid.sum())
    return least - ROUNDING * float(summed + np.abs(paid).sum())
