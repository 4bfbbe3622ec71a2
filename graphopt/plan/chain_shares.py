"""One budget for a chain of graphs: what each keeps while those behind it run, and what each may take itself.

Forwards run in order and backwards in reverse, so that the sum of what is kept before a graph decides what it may
take. The choice is a dynamic programme over the graphs with that sum, in grains, as its state, as in rotor's chains
(Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova: Optimal checkpointing for heterogeneous chains, 2019, section 4),
with what a graph keeps as a choice of many and not of two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.base.errors import InfeasibleError
from graphopt.plan.block_points import BlockPoint

#: Grains of a budget: sums are rounded up, by half a grain for each graph. What is lost is looked for again at the end.
_GRAINS = 4096

#: The points of each graph of a chain.
Curves = Sequence[Sequence[BlockPoint]]


@dataclass(frozen=True)
class Beside:
    """What is there besides the graphs' own bytes, at most: while each runs, and between them.

    `between[k]` is while the first `k` graphs keep what they keep and none runs, k from 0 to their number.
    """

    forward: tuple[int, ...]
    backward: tuple[int, ...]
    between: tuple[int, ...]

    def with_most(self, other: Beside) -> Beside:
        """The more of both, place by place."""
        return Beside(
            _most(self.forward, other.forward),
            _most(self.backward, other.backward),
            _most(self.between, other.between),
        )


#: Besides no graphs at all.
NOTHING = Beside((), (), ())


def _most(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(pair) for pair in zip(one, other, strict=True))


def chain_peak_bytes(beside: Beside, chosen: Sequence[BlockPoint]) -> int:
    """The highest number of bytes at any time, if each graph runs as chosen."""
    peak, kept = beside.between[0], 0
    for point, forward, backward, between in zip(
        chosen, beside.forward, beside.backward, beside.between[1:], strict=True
    ):
        peak = max(peak, kept + forward + point.forward_bytes, kept + backward + point.backward_bytes)
        kept += point.kept_bytes
        peak = max(peak, kept + between)
    return peak


def least_points(curves: Curves) -> list[BlockPoint]:
    """What a chain runs with before it is known what is there besides: little kept by each, and small peaks."""
    count = len(curves)
    return [
        min(curve, key=lambda p: (count * p.kept_bytes + max(p.forward_bytes, p.backward_bytes), p.seconds))
        for curve in curves
    ]


def smallest(curves: Curves, beside: Beside) -> list[BlockPoint]:
    """About the least peak of a chain: of all budgets between the best known and nothing, the least that is met."""
    best = least_points(curves)
    low, high = 0, chain_peak_bytes(beside, best)
    while high - low > high // 512 + 1:
        budget = (low + high) // 2
        found = _programme(curves, beside, budget)
        if found is None:
            low = budget
        else:
            best, high = found, chain_peak_bytes(beside, found)
    return best


def share_chain(curves: Curves, beside: Beside, budget_bytes: int) -> list[BlockPoint]:
    """The fastest choice whose peak is at most `budget_bytes`; raises InfeasibleError with the least that is known."""
    same = {id(curve): curve for curve in curves}
    found = [_programme(curves, beside, budget_bytes), least_points(curves)]
    if len(same) == 1:  # blocks that are alike, planned alike: torch's checkpoint in each is one of these
        found += [[point] * len(curves) for point in curves[0]]
    fitting = [each for each in found if each is not None and chain_peak_bytes(beside, each) <= budget_bytes]
    if not fitting:
        least = smallest(curves, beside)
        least_bytes = chain_peak_bytes(beside, least)
        if least_bytes > budget_bytes:
            raise InfeasibleError(budget_bytes, least_bytes)
        fitting = [least]
    return _with_what_is_left(curves, beside, budget_bytes, min(fitting, key=seconds_of))


def seconds_of(chosen: Sequence[BlockPoint]) -> float:
    """Of all graphs together."""
    return math.fsum(point.seconds for point in chosen)


def _programme(curves: Curves, beside: Beside, budget_bytes: int) -> list[BlockPoint] | None:
    """The fastest choice with sums in grains; None where none fits."""
    grain = max(1, -(-budget_bytes // _GRAINS))
    best = np.full(_GRAINS + 1, np.inf)
    best[0] = 0.0 if beside.between[0] <= budget_bytes else np.inf
    steps: list[npt.NDArray[np.int32]] = []
    for i, curve in enumerate(curves):
        following, choice = np.full(_GRAINS + 1, np.inf), np.full(_GRAINS + 1, -1, dtype=np.int32)
        last_kept = (budget_bytes - beside.between[i + 1]) // grain
        for number, point in enumerate(curve):
            most_bytes = max(beside.forward[i] + point.forward_bytes, beside.backward[i] + point.backward_bytes)
            added = -(-point.kept_bytes // grain)
            last = min((budget_bytes - most_bytes) // grain, last_kept - added)
            if last < 0:
                continue
            here, there = best[: last + 1] + point.seconds, following[added : added + last + 1]
            better = here < there
            there[better] = here[better]
            choice[added : added + last + 1][better] = number
        best = following
        steps.append(choice)
    if not np.isfinite(best).any():
        return None
    kept, chosen = int(best.argmin()), []
    for curve, choice in zip(reversed(curves), reversed(steps), strict=True):
        chosen.append(curve[choice[kept]])
        kept -= -(-chosen[-1].kept_bytes // grain)
    return chosen[::-1]


def _with_what_is_left(
    curves: Curves, beside: Beside, budget_bytes: int, chosen: Sequence[BlockPoint]
) -> list[BlockPoint]:
    """Graph by graph the fastest point with which the chain still fits: grains have left some room."""
    found = list(chosen)
    for i in range(len(found) - 1, -1, -1):
        for point in sorted(curves[i], key=lambda p: p.seconds):
            if point.seconds >= found[i].seconds:
                break
            if chain_peak_bytes(beside, [*found[:i], point, *found[i + 1 :]]) <= budget_bytes:
                found[i] = point
                break
    return found
