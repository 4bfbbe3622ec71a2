"""Local search: a schedule made faster inside its budget, for as long as there is time.

Rounds of annealing (Kirkpatrick et al., 1983), each twice as long as the one before, so that more
time goes on where less time ended and is never worse. A round starts from the best schedule so far,
or from a new one that minimum cuts give for the budget.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, replace

import numpy as np

from graphopt.planners.moves.cut_prices import schedules_under
from graphopt.planners.moves.cuts import cutter_at
from graphopt.planners.native.anneal_round import AnnealRound
from graphopt.planners.orders.lower_order import in_lower_order, reordered
from graphopt.planners.schedules.memory_profile import in_own_order
from graphopt.planners.study.study import Study, study_of
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule, simulate

#: Moves of the first round; moves in a second, for small problems and less for each so many ops.
FIRST_ROUND, MOVES_PER_SECOND, OPS_HALVE = 400, 40_000, 1500
#: The clock ends a search that takes this many times as long as it should.
PATIENCE = 4.0
#: Cuts before each round, the moves that one counts as, and the range of their rates.
CUTS, MOVES_PER_CUT, RATES = 12, 25, (3.0, 12.0)
#: Moves of a search of two short rounds.
BRIEF = 1800
#: A schedule is better if it is faster by more than rounding.
LEAST_GAIN = 1e-9


@dataclass
class _Best:
    """The best schedule so far."""

    schedule: Schedule
    seconds: float

    def offer(self, schedule: Schedule, seconds: float) -> None:
        if seconds < self.seconds * (1 - LEAST_GAIN):
            self.schedule, self.seconds = schedule, seconds


def improve(problem: Problem | Study, schedule: Schedule, budget_bytes: int, seconds: float, seed: int = 0) -> Schedule:
    """A schedule inside `budget_bytes` that is at least as fast as `schedule`, which must fit.

    `seconds` are turned into a number of moves by a fixed rate, so that the same call gives the same
    schedule; only where the clock says that it takes several times as long does it end early.
    """
    study = study_of(problem)
    moves = int(seconds * MOVES_PER_SECOND / (1 + len(study.problem.ops) / OPS_HALVE))
    return improve_by(study, schedule, budget_bytes, moves, seed, time.monotonic() + PATIENCE * seconds)


def improve_briefly(study: Study, schedule: Schedule, budget_bytes: int) -> Schedule:
    """The same, by two short rounds."""
    return improve_by(study, schedule, budget_bytes, BRIEF)


def improve_by(
    study: Study, schedule: Schedule, budget_bytes: int, moves: int, seed: int = 0, end: float = math.inf
) -> Schedule:
    """The same, by a number of moves, until `end` on the monotonic clock."""
    there, placed, order = _in_its_order(study, schedule)
    found = _improved(there, placed, budget_bytes, moves, seed, end)
    return found if there is study else tuple(order[op_id] for op_id in found)


def lowered_by(study: Study, schedule: Schedule, budget_bytes: int, seconds: float, moves: int) -> Schedule | None:
    """A schedule inside a budget in less than `seconds`, by a round from one that takes more bytes.

    None where none is found. What is above the budget is evicted first, and the rest of the round finds out
    what else had better go: in some milliseconds as good as hours from a schedule that fits but is poor.
    """
    there, placed, order = _in_its_order(study, schedule)
    what = AnnealRound(budget_bytes, 0, moves, moves, seconds, math.inf)
    found = there.loops.anneal(np.array(placed, dtype=np.int64), what)
    return None if found is None else tuple(order[op_id] for op_id in found[0].tolist())


def _in_its_order(study: Study, schedule: Schedule) -> tuple[Study, Schedule, Schedule]:
    """A study of the problem with its ops in the order in which they first run, the schedule there, and that order."""
    order = tuple(dict.fromkeys(schedule))
    if order == tuple(range(len(study.problem.ops))):
        return study, schedule, order
    # Cuts are made in the order in which the ops first run here.
    place = {op_id: at for at, op_id in enumerate(order)}
    there = in_lower_order(study)
    if order != reordered(study):
        there = study.of(replace(study.problem, ops=tuple(study.problem.ops[op_id] for op_id in order)))
    return there, tuple(place[op_id] for op_id in schedule), order


def _improved(study: Study, schedule: Schedule, budget_bytes: int, moves: int, seed: int, end: float) -> Schedule:
    """The same, where first runs stand in the problem's own order."""
    problem = study.problem
    best = _Best(tuple(schedule), simulate(problem, schedule).seconds)
    alive = in_own_order(study).live_bytes
    over = np.flatnonzero(alive > budget_bytes).tolist()
    if not over:
        best.offer(tuple(range(len(problem.ops))), problem.seconds)
    if not over or len(schedule) == len(problem.ops):
        return best.schedule
    rng = random.Random(seed)
    length = min(FIRST_ROUND, max(1, moves - CUTS * MOVES_PER_CUT))
    split, rate, turn = int(alive.argmax()), RATES[1] / 2, 0
    while moves > 0 and time.monotonic() < end:
        cut = min(schedules_under(cutter_at(study, split), budget_bytes, CUTS, rate), default=None)
        if cut is not None:
            best.offer(cut[1], cut[0])
        begin = np.array(cut[1] if turn % 2 and cut is not None else best.schedule, dtype=np.int64)
        moves -= CUTS * MOVES_PER_CUT
        number, left = rng.getrandbits(62), end - time.monotonic()
        what = AnnealRound(budget_bytes, number, length, min(moves, length), best.seconds, left)
        faster = study.loops.anneal(begin, what)
        if faster is not None:
            best.offer(tuple(faster[0].tolist()), faster[1])
        moves -= length
        split, rate = rng.choice(over), RATES[0] * (RATES[1] / RATES[0]) ** rng.random()
        length, turn = 2 * length, turn + 1
    assert simulate(problem, best.schedule).peak_bytes <= budget_bytes
    return best.schedule
