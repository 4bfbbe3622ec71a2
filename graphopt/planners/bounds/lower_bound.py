"""A lower bound on the seconds of every schedule inside a budget.

Each step is looked at alone (`step_model`); the step that costs most gives a bound. Where that is,
near the turn from the forward to the backward, is found by looking at some steps, then ever closer
around the best of them. It counts no op twice. Where little memory is left ops run again more than once:
then that step and some others are looked at together (`stage_model`), and the larger bound is taken.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np

from graphopt.planners.bounds.moments import moments_in_any_order, moments_in_order
from graphopt.planners.bounds.relaxation import proven
from graphopt.planners.bounds.stage_model import StageModel
from graphopt.planners.bounds.step_model import StepModel
from graphopt.planners.bounds.wanted import Wanted, wanted_in_any_order, wanted_in_order
from graphopt.planners.schedules.memory_profile import in_own_order
from graphopt.planners.study.study import Study, study_of
from graphopt.problem.problem import Problem

Order = Literal["fixed", "free"]

#: Steps looked at in a round, and the ops (all steps of all rounds together) that there is time for.
FIRST_ROUND, LATER_ROUNDS, TIME = 16, 6, 20_000
#: Moments that are looked at together (of 2 to 20, those few proved most in the same time), for problems of so many
#: ops, and in budgets of at most this share of the own order's peak: at 0.6 of it they proved 0.9 points more at most.
MOMENTS, MOST_OPS, TIGHT = (4, 5), 1000, 0.7
#: Steps of looking for prices take so many entries of rows all together, and are not more than so many.
ENTRIES, MOST_STEPS = 30_000_000, 8000
#: Share of a step's seconds to which the best price is looked for, and by which rounding may mislead.
ENOUGH, ROUNDING = 1e-4, 1e-9


def lower_bound_seconds(problem: Problem | Study, budget_bytes: int, order: Order = "free") -> float:
    """Seconds that no valid schedule with a simulated peak of at most `budget_bytes` is below.

    At least `problem.seconds`; infinite where it is proven that no schedule fits. With
    `order="fixed"` only schedules whose first runs stand in the problem's own order are meant, which
    are those that planners return unless they say otherwise.
    """
    study = study_of(problem)
    if _never_fits(study.problem, budget_bytes):
        return math.inf
    worst = _look_around(study, budget_bytes, order)
    is_tight = budget_bytes <= TIGHT * in_own_order(study).peak_bytes
    if not is_tight or worst.seconds == math.inf or len(study.problem.ops) > MOST_OPS:
        return worst.seconds
    return max(worst.seconds, *(_together(study, budget_bytes, order, worst.step, count) for count in MOMENTS))


def _together(study: Study, budget_bytes: int, order: Order, dearest: int, count: int) -> float:
    """What several moments prove together; 0 without machine code."""
    problem = study.problem
    moments = moments_in_order if order == "fixed" else moments_in_any_order
    model = StageModel(problem, budget_bytes, moments(study, budget_bytes, count, dearest))
    programme = model.programme()
    unit = float(programme.costs.mean()) if len(programme.costs) else 0.0
    if not unit:
        return 0.0
    programme = replace(programme, costs=programme.costs / unit)
    prices = study.loops.prices(programme, min(MOST_STEPS, 1 + ENTRIES // len(programme.row)))
    if prices is None:
        return 0.0
    return model.sure_seconds + unit * proven(programme, prices) - ROUNDING * problem.seconds


def dearest_step(study: Study, budget_bytes: int, order: Order = "free") -> int:
    """The op whose first run is the moment that gives `lower_bound_seconds`; 0 where all fits."""
    return _look_around(study, budget_bytes, order).step


def _look_around(study: Study, budget_bytes: int, order: Order) -> _Worst:
    problem, memory = study.problem, in_own_order(study).live_bytes
    over = np.flatnonzero(memory > budget_bytes)
    wanted = wanted_in_order(problem) if order == "fixed" else wanted_in_any_order(problem)
    worst = _Worst(study, budget_bytes, wanted)
    left = max(FIRST_ROUND, TIME // len(problem.ops))
    count = FIRST_ROUND
    while len(over) and left > 0:
        blocks = [block for block in np.array_split(over, count) if len(block)]
        steps = sorted({int(block[memory[block].argmax()]) for block in blocks} - worst.seen)
        if not steps:
            break
        left -= len(steps)
        for step in steps:
            worst.look(step)
        width = 1.5 * (over[-1] - over[0] + 1) / count
        over = over[np.abs(over - worst.step) <= width]
        count = LATER_ROUNDS
    return worst


def _never_fits(problem: Problem, budget_bytes: int) -> bool:
    """Whether one op alone, or the outputs at the end, take more than the budget."""
    size, maker = problem.values, problem.producer
    own = ([v for v in {*op.inputs, *op.outputs} if maker[v] >= 0] for op in problem.ops)
    alone = [op.workspace_bytes + sum(size[v].bytes for v in made) for op, made in zip(problem.ops, own, strict=True)]
    last = sum(size[v].bytes for v in problem.outputs if maker[v] >= 0)
    return max(*alone, last) > budget_bytes


class _Worst:
    """The step that costs most of those looked at; its price is where the next one starts."""

    def __init__(self, study: Study, budget_bytes: int, wanted: Wanted) -> None:
        problem = study.problem
        self.study, self.problem, self.budget_bytes, self.wanted = study, problem, budget_bytes, wanted
        self.seconds, self.step = problem.seconds, 0
        self.price = 0.1 * problem.seconds / max(1, budget_bytes)
        self.seen: set[int] = set()
        self.most = -1.0

    def look(self, step: int) -> None:
        self.seen.add(step)
        model = StepModel(self.study, step, self.wanted(step), self.budget_bytes)
        if model.impossible:
            self.seconds = math.inf
        cut = model.best(self.price, ENOUGH * self.problem.seconds)
        self.price = cut.price or self.price
        if cut.seconds > self.most:
            self.most, self.step = cut.seconds, step
            self.seconds = max(self.seconds, self.problem.seconds + cut.seconds - ROUNDING * self.problem.seconds)
