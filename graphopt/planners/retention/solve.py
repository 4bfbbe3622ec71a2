"""One call of the solver: a budget, how good a schedule has to be, and what is known already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphopt.base.errors import UsageError
from graphopt.planners.retention.model import PARTS, RetentionModel
from graphopt.planners.retention.step import add_step
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule

#: The solver's own count of its work that a second allows it: what ends a search the same way every time.
WORK_A_SECOND = 0.02


@dataclass(frozen=True)
class SolverLimits:
    """How long the solver may take; the same answer for the same `seed` with one worker."""

    limit_seconds: float
    workers: int = 1
    seed: int = 0


@dataclass(frozen=True)
class RetentionQuestion:
    """How often each op may run again inside a budget, and a step (with what it wants) to look at closely."""

    problem: Problem
    budget_bytes: int
    most: Mapping[int, int]
    step: int
    wanted: Iterable[int]


@dataclass(frozen=True)
class RetentionAnswer:
    """The schedule, None where none was found; seconds that at least run again, and whether that is final."""

    schedule: Schedule | None
    bound_seconds: float
    finished: bool


def require_solver() -> None:
    """Raise UsageError where the extra is not installed."""
    try:
        import ortools  # noqa: F401
    except ImportError:
        raise UsageError("the planner 'exact' needs OR-tools: pip install graphopt[exact]") from None


def solve(question: RetentionQuestion, start: Sequence[int], limits: SolverLimits) -> RetentionAnswer:
    """The schedule in which the ops take the fewest seconds when they run again.

    Where there is a `start` only what is better is looked for: that none is found and `finished` is set
    is the proof that there is none.
    """
    from ortools.sat.python import cp_model

    problem = question.problem
    model = RetentionModel(problem, question.budget_bytes, question.most)
    add_step(model, question.step, question.wanted)
    unit = problem.seconds / PARTS
    runs = Counter(start)
    known = sum(model.parts(op) * (runs[op] - 1) for op in model.again)
    if start:
        model.model.add(model.cost <= known - 1)
        _hint(model, start)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = limits.workers
    solver.parameters.random_seed = limits.seed
    solver.parameters.linearization_level = 2
    solver.parameters.max_time_in_seconds = limits.limit_seconds
    solver.parameters.max_deterministic_time = WORK_A_SECOND * limits.limit_seconds
    status = solver.solve(model.model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        finished = status == cp_model.INFEASIBLE
        return RetentionAnswer(None, known * unit if finished else 0.0, finished)
    return RetentionAnswer(_schedule(model, solver), solver.best_objective_bound * unit, status == cp_model.OPTIMAL)


def _schedule(model: RetentionModel, solver: Any) -> Schedule:
    there = [run for run in model.all_runs if run.present is not None and solver.boolean_value(run.present)]
    return model.schedule((solver.value(run.stage), run.op) for run in there)


def _hint(model: RetentionModel, start: Sequence[int]) -> None:
    """Point the solver to a schedule; runs beyond those in the model are left out."""
    hint = model.model.add_hint
    later = {op: [run for run in runs if run.present is not None] for op, runs in model.runs.items()}
    stage = 0
    for op in start:
        if op == stage:
            stage += 1
        elif later[op]:
            run = later[op].pop(0)
            hint(run.present, True)
            hint(run.stage, stage)
    for runs in later.values():
        for run in runs:
            hint(run.present, False)
