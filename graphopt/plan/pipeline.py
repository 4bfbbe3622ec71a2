"""The pipeline from a captured graph on: Problem -> Schedule -> GraphPlan -> GraphModules."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.base.errors import InfeasibleError, PlanMismatchError
from graphopt.emit.late_writers import settle
from graphopt.graph.step_graph import StepGraph
from graphopt.plan.captured import CapturedGraph, Choice, PlannedGraph
from graphopt.plan.infeasible import budget_error
from graphopt.planners.moves import anneal
from graphopt.problem.plan import GraphPlan
from graphopt.problem.schedule import Schedule, simulate


def plan_graph(captured: CapturedGraph, budget_bytes: int, choice: Choice) -> PlannedGraph:
    """Plan one graph inside `budget_bytes` of its own values.

    Raises InfeasibleError where the planner finds no schedule that fits, PlanMismatchError where
    plans were given and none is for this graph.
    """
    schedule = (
        _kept_schedule(captured, budget_bytes) if captured.kept else _new_schedule(captured, budget_bytes, choice)
    )
    peak_bytes = captured.peak_bytes(schedule)
    if peak_bytes > budget_bytes:
        raise InfeasibleError(budget_bytes, peak_bytes)
    return PlannedGraph(captured, choice, budget_bytes, schedule, simulate(captured.problem, schedule))


def plan_within(
    captured: CapturedGraph, budget_bytes: int, resident_bytes: Mapping[str, int], choice: Choice
) -> PlannedGraph:
    """Plan one graph so that it and what is resident fit; raises BudgetError where they cannot."""
    own_bytes = budget_bytes - sum(resident_bytes.values())
    try:
        return plan_graph(captured, own_bytes, choice)
    except InfeasibleError as error:
        least = error.minimum_bytes
        raise budget_error([captured], least, budget_bytes, resident_bytes, choice.planner) from None


def _new_schedule(captured: CapturedGraph, budget_bytes: int, choice: Choice) -> Schedule:
    if captured.eager.peak_bytes <= budget_bytes:
        return captured.captured_schedule
    if choice.planner == "auto":
        schedule = _fastest(captured, budget_bytes)
    else:
        schedule = captured.schedule_by(choice.planner, budget_bytes)
    if choice.plan_seconds:
        schedule = _improved(captured, schedule, budget_bytes, choice.plan_seconds)
    return settle(captured.step, schedule)


def _fastest(captured: CapturedGraph, budget_bytes: int) -> Schedule:
    fitting = [candidate for candidate in captured.curve if candidate.peak_bytes <= budget_bytes]
    if not fitting:
        raise InfeasibleError(budget_bytes, captured.minimum_bytes)
    return fitting[-1].schedule


def _improved(captured: CapturedGraph, schedule: Schedule, budget_bytes: int, seconds: float) -> Schedule:
    """What a local search makes of a schedule that fits; generator states that it adds may not take it over."""
    own_bytes = max(simulate(captured.problem, schedule).peak_bytes, budget_bytes - captured.most_state_bytes)
    better = settle(captured.step, anneal.improve(captured.problem, schedule, own_bytes, seconds))
    return better if captured.peak_bytes(better) <= budget_bytes else schedule


def _kept_schedule(captured: CapturedGraph, budget_bytes: int) -> Schedule:
    """The kept plan's schedule at the budget that it was made for; at another one the best of its curve."""
    assert captured.kept is not None and captured.kept_schedule is not None
    schedule = captured.kept_schedule
    if captured.kept.budget_bytes == budget_bytes and captured.peak_bytes(schedule) <= budget_bytes:
        return schedule
    return _fastest(captured, budget_bytes)


def kept_plan(step: StepGraph, choice: Choice, name: str) -> GraphPlan | None:
    """The kept plan for this graph, None where none were given; raises PlanMismatchError where none is for it."""
    if choice.kept is None:
        return None
    kept = choice.kept.get(step.graph_hash)
    if kept is None:
        raise PlanMismatchError(
            f"the plan was made for another graph: {name!r} has hash {step.graph_hash}, the plan "
            f"knows {', '.join(choice.kept)}; plan again with the model, shapes and torch version of this run"
        )
    return kept
