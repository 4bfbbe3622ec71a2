"""The fastest schedule of its kind, and the proof: constraint programming on retention intervals.

For problems of some hundred ops. Needs the extra `exact` (OR-tools); which solver, and how long it takes
beside another, is what `benchmarks/planning/solvers.py` measures.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from graphopt.base.errors import InfeasibleError
from graphopt.planners.auto import auto_curve, in_order_curve
from graphopt.planners.bounds.lower_bound import dearest_step, lower_bound_seconds
from graphopt.planners.bounds.wanted import wanted_in_order
from graphopt.planners.curves.curve import pick
from graphopt.planners.orders.lower_order import in_lower_order, reordered
from graphopt.planners.retention.solve import RetentionQuestion, SolverLimits, require_solver, solve
from graphopt.planners.study.study import Study, study_of
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule, simulate

#: Relative difference of seconds that is none: the solver counts in whole parts.
SAME = 1e-6


@dataclass(frozen=True)
class ExactResult:
    """A schedule, its seconds, and seconds that none of its kind is below: the same, but for rounding, where `proven`.

    Of its kind are those whose first runs stand in the problem's own order and in which each op runs at
    most as often as was allowed, or as in the start.
    """

    schedule: Schedule
    seconds: float
    bound_seconds: float
    proven: bool


def solve_exact(
    problem: Problem | Study,
    budget_bytes: int,
    *,
    computations: int = 2,
    limit_seconds: float = 60.0,
    workers: int = 1,
    seed: int = 0,
    start: Schedule | None = None,
) -> ExactResult:
    """The fastest schedule inside `budget_bytes` in which an op runs at most `computations` times.

    First runs keep the problem's own order, with what runs again between two of them in that order too.
    Never slower than `start`, nor than `auto` where no start is given. The same every time with one
    worker, unless the clock ends the search. Raises InfeasibleError where `auto` has no schedule either,
    UsageError without the extra. The model is that of Bartan et al., Moccasin (ICML 2023), section 2.
    """
    require_solver()
    study = study_of(problem)
    problem = study.problem
    best = tuple(start) if start is not None else _auto_schedule(study, budget_bytes)
    started = simulate(problem, range(len(problem.ops)) if best is None else best)
    assert best is None or started.peak_bytes <= budget_bytes, "the start does not fit"
    seconds = started.seconds
    bound = lower_bound_seconds(study, budget_bytes, "fixed")
    if best is not None and seconds <= bound * (1 + SAME):
        return ExactResult(best, seconds, bound, True)
    runs = Counter(best or ())
    most = {op: max(computations, runs[op]) - 1 for op in range(len(problem.ops))}
    step = dearest_step(study, budget_bytes, "fixed")
    question = RetentionQuestion(problem, budget_bytes, most, step, wanted_in_order(problem)(step))
    answer = solve(question, best or (), SolverLimits(limit_seconds, workers, seed))
    if answer.schedule is not None:
        found = simulate(problem, answer.schedule)
        if found.peak_bytes <= budget_bytes and (best is None or found.seconds < seconds):
            best, seconds = answer.schedule, found.seconds
    if best is None:
        raise InfeasibleError(budget_bytes, in_order_curve(study)[0].peak_bytes)
    bound = seconds if answer.finished else max(bound, problem.seconds + answer.bound_seconds)
    return ExactResult(best, seconds, bound, answer.finished)


def _auto_schedule(study: Study, budget_bytes: int) -> Schedule | None:
    curve = in_order_curve(study)
    return pick(curve, budget_bytes) if curve[0].peak_bytes <= budget_bytes else None


def plan_exact(study: Study, budget_bytes: int) -> Schedule:
    """The best that the solver finds in a minute, in the order in which `auto` is faster; no slower than `auto`.

    Raises InfeasibleError where `auto` has no schedule in `budget_bytes`, UsageError without the extra.
    """
    require_solver()
    order, start = reordered(study), pick(auto_curve(study), budget_bytes)
    if len(start) == len(study.problem.ops):
        return start
    if tuple(dict.fromkeys(start)) == order:
        return tuple(order[op_id] for op_id in solve_exact(in_lower_order(study), budget_bytes).schedule)
    return solve_exact(study, budget_bytes).schedule
