"""How much is tried for a problem: the larger it is, the less, so that planning takes time in proportion to its ops."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from graphopt.planners.study.study import Study


@dataclass(frozen=True)
class BudgetSweep:
    """Budgets in one pass over a curve, from its highest peak down."""

    #: Ratio of a budget to the one above it, and of the first one to the highest peak.
    ratio: float
    first: float
    #: How many times a budget its start may take.
    above: float


@dataclass(frozen=True)
class Effort:
    """What the searches try."""

    #: Ratio of one target to the one above it: on the way down from no recomputation, and from good schedules.
    descent: float
    polish: float
    #: Ratio of one price of minimum cuts to the next, and whether prices of the highest step alone are tried too.
    price_ratio: float
    price_alone: bool
    #: Limits of the walks, as shares of the way from the floor to the peak.
    walks: tuple[float, ...]
    #: Ratio of the peaks of schedules that are filled.
    apart: float
    #: Batches of moves in which a schedule is filled at the least, and whether that is gone on with where hopeless.
    batches: int
    patient: bool
    #: Where polishing starts, on a logarithmic scale from the lowest peak to the highest.
    polished: tuple[float, ...]
    #: Memories at which the chain's programme is read out.
    read_outs: int
    #: And between its least one and half as much again, for the low end alone.
    low_read_outs: int
    #: Planners from whose lowest schedules the lowest of all is sought, and rounds of hoisting there.
    lowest: int
    hoists: int
    #: Ratios of one target to the one above it on the way down from there.
    bottom: tuple[float, ...]
    #: How many of a curve's drops are tried hard to be had for less.
    drops: int
    #: Passes over the curve at which points are lowered to budgets.
    passes: tuple[BudgetSweep, ...] = ()
    #: Budgets for which cuts and local moves are made.
    retouches: int = 0
    #: Budgets near the least peak to which schedules are lowered, and moves of local search for each.
    low_budgets: int = 0
    low_moves: int = 0
    #: Other numbers of regions with which the chain's programme is looked at there.
    low_regions: tuple[int, ...] = ()
    #: Whether of two orders the one with the higher peak is polished and brought down too.
    both: bool = False
    #: Other drops, of at least this share of a step's seconds, are tried too, to be had for a byte less.
    least_drop: float = math.inf


_TINY = Effort(
    descent=0.95,
    polish=0.95,
    price_ratio=1.3,
    price_alone=True,
    walks=tuple(0.55**k for k in range(1, 7)),
    apart=0.95,
    batches=48,
    patient=True,
    polished=(0.0,),
    read_outs=6,
    low_read_outs=20,
    lowest=3,
    hoists=5,
    bottom=(0.95, 0.9),
    drops=16,
    passes=(BudgetSweep(0.98, 0.98, 1.04), BudgetSweep(0.98, 0.99, 1.07), BudgetSweep(0.98, 0.985, 1.03)),
    retouches=30,
    low_budgets=12,
    low_moves=300,
    both=True,
    least_drop=5e-4,
)
_SMALL = Effort(
    descent=0.95,
    polish=0.95,
    price_ratio=1.3,
    price_alone=True,
    walks=tuple(0.815**k for k in range(1, 19)),
    apart=0.95,
    batches=48,
    patient=True,
    polished=(0.0,),
    read_outs=8,
    low_read_outs=20,
    lowest=3,
    hoists=5,
    bottom=(0.95, 0.9),
    drops=16,
    passes=(BudgetSweep(0.98, 0.98, 1.04), BudgetSweep(0.98, 0.99, 1.07), BudgetSweep(0.98, 0.985, 1.03)),
    retouches=10,
    low_budgets=12,
    low_moves=300,
    least_drop=5e-4,
)
_MEDIUM = replace(_SMALL, bottom=(0.95,), drops=8, retouches=1, low_budgets=10, low_moves=200)
_LARGE = replace(_MEDIUM, walks=(0.4, 0.18, 0.04, 0.0225), retouches=0, low_read_outs=10, low_budgets=0)
_HUGE = replace(
    _LARGE,
    descent=0.8,
    polish=0.8,
    price_ratio=1.5,
    price_alone=False,
    walks=(0.3, 0.06),
    apart=0.7,
    batches=40,
    patient=False,
    low_read_outs=0,
    lowest=1,
    hoists=1,
    bottom=(0.9,),
    passes=(BudgetSweep(0.97, 0.97, 1.05),),
    least_drop=1e-3,
)
#: A walk looks at all values for each one that goes, so it is what grows fastest.
_VAST = replace(
    _HUGE,
    descent=0.7,
    polish=0.7,
    walks=(),
    apart=0.5,
    batches=20,
    read_outs=10,
    low_read_outs=0,
    lowest=0,
    hoists=0,
    drops=0,
    passes=(),
    least_drop=math.inf,
)
#: The most ops for each.
_TABLE = (
    (130, _TINY),
    (300, _SMALL),
    (500, replace(_SMALL, retouches=4)),
    (1000, replace(_MEDIUM, lowest=2, low_budgets=8)),
    (1500, replace(_MEDIUM, low_regions=(80,), low_budgets=6)),
    (6000, _LARGE),
    (20_000, _HUGE),
    (math.inf, _VAST),
)


def effort_for(study: Study) -> Effort:
    """What there is time for: with slow loops as much as for a problem of as many times the ops."""
    ops = len(study.problem.ops) * study.loops.slowness
    return next(effort for most, effort in _TABLE if ops <= most)
