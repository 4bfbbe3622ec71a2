"""Schedules of a chain of regions, from its dynamic programme."""

from __future__ import annotations

import numpy as np

from graphopt.planners.chain_programme import SLOTS, Chain
from graphopt.planners.curve import Curve, CurvePoint, once_per_problem, pareto, pick
from graphopt.planners.effort import effort_for
from graphopt.planners.none import none_curve
from graphopt.planners.options import options_of
from graphopt.planners.regions import regions_of
from graphopt.planners.replay import missing_ops
from graphopt.planners.spans import point
from graphopt.problem import Problem
from graphopt.schedule import Schedule

#: The programme takes time in the cube of the regions.
MOST_REGIONS = 40
#: The programme counts memory coarsely for the whole range, and finely for its low end.
ROOMS = (1.0, 0.0)


class _Writer:
    """Turns the programme's choices into a schedule of the problem's ops."""

    def __init__(self, problem: Problem, chain: Chain) -> None:
        self.problem, self.chain, self.regions = problem, chain, chain.regions
        self.alive = set(self.regions.held)
        self.pending: list[frozenset[int]] = []
        self.schedule: list[int] = []

    def write(self, slots: int) -> list[int]:
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
                self.alive -= border[i] - border[j] - self.kept(j, number) - self.regions.held
        return self.schedule

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
            self.pass_through()

    def kept(self, region: int, option: int) -> frozenset[int]:
        """The values that an option keeps; none where -1 stands for no option."""
        values = self.regions.parts[region].values
        return frozenset(values[v] for v in self.chain.options[region][option].kept) if option >= 0 else frozenset()

    def pass_through(self) -> None:
        """One pass over the forward that leaves behind what is pending."""
        wanted: set[int] = set().union(*self.pending)
        if self.schedule:
            self.schedule.extend(missing_ops(self.problem, wanted, self.alive))
        else:
            self.schedule.extend(range(self.regions.end))
        self.alive |= wanted
        self.pending.clear()

    def backward(self, region: int, option: int) -> None:
        """The backward of a region as its option has it; what it misses all the same is computed before it is read."""
        ops, part, alive = self.problem.ops, self.regions.parts[region], self.alive
        here: set[int] = set()

        def run(op_id: int) -> None:
            self.schedule.append(op_id)
            if op_id < self.regions.end:
                here.update([v for v in ops[op_id].outputs if v not in alive])
            alive.update(ops[op_id].outputs)

        for local in self.chain.options[region][option].steps:
            op_id = part.ops[local]
            if not alive.issuperset(ops[op_id].inputs):
                for again in missing_ops(self.problem, ops[op_id].inputs, alive):
                    run(again)
            run(op_id)
        alive -= here
        alive -= self.kept(region, option) - self.regions.held - self.regions.border[region]


def chain_points(problem: Problem) -> list[CurvePoint]:
    """Schedules of the programme at a few memories between its least and its greatest."""
    regions = regions_of(problem, MOST_REGIONS)
    if regions is None:
        return []
    options = options_of(regions)
    return [found for room in ROOMS for found in _points(problem, Chain(problem, regions, options, room))]


def _points(problem: Problem, chain: Chain) -> list[CurvePoint]:
    cost = chain.seconds[0, -1, chain.PAD :]
    reachable = np.flatnonzero(np.isfinite(cost))
    if not len(reachable):
        return []
    first = int(reachable[0])
    wanted = np.geomspace(max(1, first), SLOTS, effort_for(problem).read_outs).astype(np.int64)
    memories = sorted({int(np.flatnonzero(cost == cost[max(m, first)])[0]) for m in wanted.tolist()})
    return [point(problem, _Writer(problem, chain).write(m), "chain") for m in memories]


@once_per_problem
def chain_curve(problem: Problem) -> Curve:
    """The chain's schedules, and the one without recomputation."""
    return pareto([*chain_points(problem), *none_curve(problem)])


def plan_chain(problem: Problem, budget_bytes: int) -> Schedule:
    """The fastest chain schedule that fits."""
    return pick(chain_curve(problem), budget_bytes)
