"""Schedules of a chain of regions, from its dynamic programme."""

from __future__ import annotations

from statistics import median

import numpy as np

from graphopt.planners.chains.actions import Action, performed
from graphopt.planners.chains.programme import SLOTS, Chain
from graphopt.planners.chains.region_options import backward_of, kept_of, options_of
from graphopt.planners.chains.regions import Regions, regions_of
from graphopt.planners.curves.curve import Curve, CurvePoint, pareto, pick
from graphopt.planners.curves.effort import effort_for
from graphopt.planners.native.arrays import Floats
from graphopt.planners.none import none_curve
from graphopt.planners.schedules.memory_profile import point
from graphopt.planners.study.study import Study, once_per_study
from graphopt.problem.schedule import Schedule

#: The programme takes time in the cube of the regions.
MOST_REGIONS = 40
#: The programme counts memory coarsely for the whole range, and finely for its low end.
ROOMS = (1.0, 0.0)
#: How many times its least memory the low end goes up to.
LOW = 1.5
#: The share of the peak above which the bytes that cross a border make it a wide one.
WIDE = 0.25


class _Writer:
    """Turns the dynamic programme's choices into what to do, one thing after the other."""

    def __init__(self, chain: Chain) -> None:
        self.chain, self.regions = chain, chain.regions
        self.pending: list[frozenset[int]] = []
        self.done: list[Action] = []
        self._kept: dict[tuple[int, int], frozenset[int]] = {}

    def write(self, slots: int) -> list[Action]:
        # An explicit stack: a chain of many regions nests deep.
        stack: list[tuple[str, int, int, int]] = [("run", 0, self.chain.count - 1, slots)]
        while stack:
            what, i, j, number = stack.pop()
            if what == "run":
                self.run(stack, i, j, number)
            elif what == "backward":
                self.backward(i, number)
            else:
                border = self.regions.border
                self.forget(border[i] - border[j] - self.kept(j, number))
        return self.done

    def run(self, stack: list[tuple[str, int, int, int]], i: int, j: int, slots: int) -> None:
        option, after = self.chain.choice(i, j, slots)
        if option >= 0:
            self.pending.append(self.kept(i, option))
            slots -= int(self.chain.kept[i][option])
            stack.append(("backward", i, i, option))
        else:
            stack.append(("run", i, after - 1, slots))
        if after <= j:
            self.pending.append(self.regions.border[after])
            stack.append(("forget", after, i, option))
            stack.append(("run", after, j, slots - int(self.chain.more[i, after])))
        else:
            # One pass over the forward leaves behind what is pending.
            self.done.append(Action("reach", list(frozenset().union(*self.pending))))
            self.pending.clear()

    def kept(self, region: int, option: int) -> frozenset[int]:
        """The values that an option keeps; none where -1 stands for no option."""
        if option < 0:
            return frozenset()
        if (region, option) not in self._kept:
            part = self.regions.parts[region]
            kept = kept_of(part, self.chain.options[region][option])
            self._kept[region, option] = frozenset(part.values[v] for v in kept)
        return self._kept[region, option]

    def backward(self, region: int, option: int) -> None:
        """The backward of a region as its option has it."""
        part = self.regions.parts[region]
        steps = backward_of(part, self.chain.options[region][option])
        self.done.append(Action("run", [part.ops[step] for step in steps]))
        self.forget(self.kept(region, option) - self.regions.border[region])

    def forget(self, values: frozenset[int]) -> None:
        self.done.append(Action("forget", list(values - self.regions.held)))


def chain_points(study: Study) -> list[CurvePoint]:
    """Schedules of the programme at a few memories between its least and its greatest."""
    return _programme_points(study)[0]


def low_chain_points(study: Study) -> list[CurvePoint]:
    """More of them between its least memory and half as much again, where those others lie far apart.

    In other numbers of regions too, where there is time for it: which is the best differs from memory to memory. An
    LSTM takes +95 % with 30 regions and +75 % with 61 at 1.2 times its least memory, and only those 30 reach that one.
    """
    if not effort_for(study).low_read_outs:
        return []
    points, counts = list(_programme_points(study)[1]), {_count(regions_of(study, MOST_REGIONS))}
    for most in effort_for(study).low_regions:
        regions = regions_of(study, most)
        if regions is not None and _count(regions) not in counts and not _is_wide(study, regions):
            counts.add(_count(regions))
            points += _low_points(study, Chain(study.problem, regions, options_of(study, regions), ROOMS[-1]))
    return points


def _count(regions: Regions | None) -> int:
    return 0 if regions is None else len(regions.parts)


@once_per_study
def _programme_points(study: Study) -> tuple[list[CurvePoint], list[CurvePoint]]:
    """Over the whole range of memories, and at its low end."""
    regions = regions_of(study, MOST_REGIONS)
    if regions is None or _is_wide(study, regions):
        return [], []
    options = options_of(study, regions)
    chains = [Chain(study.problem, regions, options, room) for room in ROOMS]
    count = effort_for(study).read_outs
    points = [
        found
        for chain in chains
        if (first := _first_slot(chain)) is not None
        for found in _points(study, chain, np.geomspace(max(1, first), SLOTS, count))
    ]
    return points, _low_points(study, chains[-1])


def _low_points(study: Study, chain: Chain) -> list[CurvePoint]:
    first = _first_slot(chain)
    if first is None:
        return []
    return _points(study, chain, np.linspace(first, min(SLOTS, LOW * first), effort_for(study).low_read_outs))


def _first_slot(chain: Chain) -> int | None:
    """The least memory in slots; None where the programme has no solution."""
    reachable = np.flatnonzero(np.isfinite(chain.seconds[0, -1, chain.PAD :]))
    return int(reachable[0]) if len(reachable) else None


def _is_wide(study: Study, regions: Regions) -> bool:
    """Whether so much crosses the borders that holding them saves nothing: no chain, but a mesh."""
    crossing = [sum(study.problem.values[v].bytes for v in border) for border in regions.border[1:]]
    return median(crossing) > WIDE * none_curve(study)[0].peak_bytes


def _points(study: Study, chain: Chain, wanted: Floats) -> list[CurvePoint]:
    """Schedules at memories in slots; of several that are equally fast only the least."""
    cost, first = chain.seconds[0, -1, chain.PAD :], _first_slot(chain)
    assert first is not None
    memories = sorted({int(np.flatnonzero(cost == cost[max(m, first)])[0]) for m in wanted.astype(np.int64).tolist()})
    return [point(study, performed(study, chain.regions, _Writer(chain).write(m)), "chain") for m in memories]


@once_per_study
def chain_curve(study: Study) -> Curve:
    """The chain's schedules, and the one without recomputation."""
    return pareto([*chain_points(study), *none_curve(study)])


def plan_chain(study: Study, budget_bytes: int) -> Schedule:
    """The fastest chain schedule that fits; raises InfeasibleError where none does."""
    return pick(chain_curve(study), budget_bytes)
