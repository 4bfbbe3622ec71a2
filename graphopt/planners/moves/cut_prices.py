"""Cuts for one budget: prices of bytes that rise at steps over the budget and fall elsewhere.

A Lagrangian relaxation of the budget at every step (Fisher, The Lagrangian Relaxation Method for
Solving Integer Programming Problems, 1981), with multiplicative steps in the place of subgradients.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graphopt.planners.moves.cuts import Cutter, keeping
from graphopt.planners.moves.evict import descend
from graphopt.planners.moves.fill import fill_under
from graphopt.planners.native.arrays import Floats
from graphopt.planners.schedules.memory_profile import MemoryProfile, in_own_order, profile_of
from graphopt.problem.schedule import Schedule

#: First prices: keeping all that can be kept costs this share of a step.
FIRST = 0.1
#: The factor on the rate from cut to cut; more than this share over or under the budget counts as this;
#: a step that is this share under the budget or less has some price, this share of the highest.
#: What is this many times the budget is not brought under it: that takes long, and no such schedule was the best.
TOO_FAR = 1.1
COOLING, MOST_OVER, NEARLY, SOME = 0.93, 0.15, 0.03, 1e-3


def schedules_under(cutter: Cutter, budget_bytes: int, cuts: int, rate: float) -> Iterator[tuple[float, Schedule]]:
    """Seconds and schedules that fit, from so many cuts; `rate` is how fast prices follow the bytes."""
    prices = _first_prices(cutter, budget_bytes)
    seen: set[frozenset[int]] = set()
    for _ in range(cuts):
        kept = cutter.cut(prices)
        line = profile_of(cutter.study, keeping(cutter.study, cutter.split, kept).base)
        if kept not in seen:
            seen.add(kept)
            fitting = _fitted(line, budget_bytes)
            if fitting is not None:
                yield fitting
        over = np.clip(_stage_bytes(line) / budget_bytes - 1, -MOST_OVER, MOST_OVER)
        prices = np.maximum(prices, SOME * prices.max() * (over > -NEARLY)) * np.exp(rate * over)
        rate *= COOLING


def _first_prices(cutter: Cutter, budget_bytes: int) -> Floats:
    """In proportion to what each step of the problem's own order is over the budget."""
    alive = in_own_order(cutter.study).live_bytes
    over: Floats = np.maximum(alive - budget_bytes, 0).astype(np.float64)
    late = sum(cutter.problem.values[v].bytes for v in cutter.late)
    return over * (FIRST / max(1.0, float(over.sum())) / max(1, late))


def _stage_bytes(line: MemoryProfile) -> Floats:
    """For each op the most bytes alive after the first run of the op before it, up to its own."""
    first = np.sort(np.unique(line.steps, return_index=True)[1])
    begin = np.concatenate([[0], first[:-1] + 1])
    highest: Floats = np.maximum.reduceat(line.live_bytes, begin).astype(np.float64)
    return highest


def _fitted(line: MemoryProfile, budget_bytes: int) -> tuple[float, Schedule] | None:
    """The schedule brought under the budget, with what fits again kept again; None where it is too far above."""
    if line.peak_bytes > TOO_FAR * budget_bytes:
        return None
    if line.peak_bytes <= budget_bytes:
        found = fill_under(line, budget_bytes).point("mincut")
    else:
        ratio = (budget_bytes + 0.5) / line.peak_bytes
        points = descend(line.study, line.steps, "mincut", ratio, budget_bytes)
        fitting = [p for p in points if p.peak_bytes <= budget_bytes]
        if not fitting:
            return None
        found = min(fitting, key=lambda p: p.seconds)
    return found.seconds, found.schedule
