"""One call of the solver: a window, how good a schedule has to be, and what is known already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphopt.base.errors import UsageError
from graphopt.planners.retention.model import PARTS, RetentionModel
from graphopt.planners.retention.step import add_step
from graphopt.planners.retention.window import Window
from graphopt.problem.schedule import Schedule

#: The solver's own count of its work that a second allows it: what ends a search the same way every time.
WORK_A_SECOND = 0.02


@dataclass(frozen=True)
class Effort:
    """How long the solver may take; the same answer for the same `seed` with one worker."""

    limit_seconds: float
    workers: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Question:
    """A window, how often each op may run again in it, and the steps (each with what it wants) to look at closely."""

    window: Window
    most: Mapping[int, int]
    order: str = "fixed"
    steps: Sequence[tuple[int, Iterable[int]]] = ()


@dataclass(frozen=True)
class Answer:
    """The whole schedule, None where none was found; seconds that at least run again, and if that is final."""

    schedule: Schedule | None
    bound_seconds: float
    finished: bool


def require_solver() -> None:
    """Raise UsageError where the extra is not installed."""
    try:
        import ortools  # noqa: F401
    except ImportError:
        raise UsageError("the planner 'exact' needs OR-tools: pip install graphopt[exact]") from None


def solve(question: Question, start: Sequence[int], effort: Effort) -> Answer:
    """The schedule in which the window's ops take the fewest seconds when they run again.

    Where there is a `start` only what is better is looked for: that none is found and `finished` is set
    is the proof that there is none.
    """
    from ortools.sat.python import cp_model

    model = RetentionModel(question.window, question.most, question.order)
    for step, wanted in question.steps:
        add_step(model, step, wanted)
    unit = question.window.problem.seconds / PARTS
    runs = Counter(start)
    known = sum(model.parts(op) * (runs[op] - 1) for op in question.window.again)
    if start:
        model.model.add(model.cost <= known - 1)
        _hint(model, start)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = effort.workers
    solver.parameters.random_seed = effort.seed
    solver.parameters.linearization_level = 2
    solver.parameters.max_time_in_seconds = effort.limit_seconds
    solver.parameters.max_deterministic_time = WORK_A_SECOND * effort.limit_seconds
    status = solver.solve(model.model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        finished = status == cp_model.INFEASIBLE
        return Answer(None, known * unit if finished else 0.0, finished)
    return Answer(_schedule(model, solver), solver.best_objective_bound * unit, status == cp_model.OPTIMAL)


def _schedule(model: RetentionModel, solver: Any) -> Schedule:
    there = [run for run in model.all_runs if run.present is None or solver.boolean_value(run.present)]
    if model.order == "free":
        return tuple(run.op for run in sorted(there, key=lambda run: int(solver.value(run.at))))
    return model.window.insert((solver.value(run.stage), run.op) for run in there if run.present is not None)


def _hint(model: RetentionModel, start: Sequence[int]) -> None:
    """Point the solver to a schedule; runs beyond those in the model are left out."""
    hint = model.model.add_hint
    fixed = {run.op: run for run in model.all_runs if run.present is None}
    later = {op: [run for run in runs if run.present is not None] for op, runs in model.runs.items()}
    ran: set[int] = set()
    stage = 0
    for place, op in enumerate(start):
        if op in ran and later.get(op):
            run = later[op].pop(0)
            hint(run.present, True)
            hint(run.at if run.stage is None else run.stage, place if run.stage is None else stage)
        elif stage < len(model.window.steps) and model.window.steps[stage] == op:
            stage += 1
            if model.order == "free":
                hint(fixed[op].at, place)
        ran.add(op)
    for runs in later.values():
        for run in runs:
            hint(run.present, False)
