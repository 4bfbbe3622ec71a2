"""The pipeline from a captured graph on: Problem -> Schedule -> PlannedGraph."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.base.errors import InfeasibleError
from graphopt.emit.late_writers import settle
from graphopt.plan.choice import Choice
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.infeasible import budget_error
from graphopt.plan.offload.placing import placed_transfers
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.prefetch import gathers_of, prefetched
from graphopt.planners.moves import anneal
from graphopt.problem.schedule import Schedule, simulate


def plan_graph(study: GraphStudy, budget_bytes: int, choice: Choice) -> PlannedGraph:
    """Plan one graph inside `budget_bytes` of its own values.

    Raises InfeasibleError where the planner finds no schedule that fits, PlanMismatchError where
    the kept plan is none of this graph's.
    """
    schedule = _kept_schedule(study, budget_bytes) if study.kept else _new_schedule(study, budget_bytes, choice)
    peak_bytes = study.peak_bytes(schedule)
    if peak_bytes > budget_bytes:
        raise InfeasibleError(budget_bytes, peak_bytes)
    simulation = simulate(study.graph.problem, schedule)
    own_bytes = budget_bytes - (peak_bytes - simulation.peak_bytes)  # without generator states
    if not study.kept and (gathers := gathers_of(study.graph)):
        schedule, simulation = prefetched(study.graph, schedule, simulation, gathers, own_bytes)
    if study.graph.moved and choice.offload is not None:
        schedule, simulation = placed_transfers(study.graph, schedule, choice.offload.link, own_bytes)
    return PlannedGraph(study, choice, budget_bytes, schedule, simulation)


def plan_within(
    study: GraphStudy, budget_bytes: int, resident_bytes: Mapping[str, int], choice: Choice
) -> PlannedGraph:
    """Plan one graph so that it and what is resident fit; raises BudgetError where they cannot."""
    own_bytes = budget_bytes - sum(resident_bytes.values())
    try:
        return plan_graph(study, own_bytes, choice)
    except InfeasibleError as error:
        least = error.minimum_bytes
        raise budget_error([study], least, budget_bytes, resident_bytes, choice.planner, choice.numerics) from None


def plan_as(study: GraphStudy, schedule: Schedule, choice: Choice) -> PlannedGraph:
    """One graph with a schedule that was chosen for it."""
    return PlannedGraph(study, choice, study.peak_bytes(schedule), schedule, simulate(study.graph.problem, schedule))


def plan_nothing(study: GraphStudy, choice: Choice) -> PlannedGraph:
    """The graph as it was captured, with nothing recomputed, whatever it takes."""
    eager = study.eager
    return PlannedGraph(study, choice, eager.peak_bytes, study.graph.captured_schedule, eager)


def _new_schedule(study: GraphStudy, budget_bytes: int, choice: Choice) -> Schedule:
    if study.eager.peak_bytes <= budget_bytes:
        return study.graph.captured_schedule
    if choice.planner == "auto":
        schedule = study.fastest(budget_bytes).schedule
    else:
        schedule = study.schedule_by(choice.planner, budget_bytes)
    if choice.plan_seconds:
        schedule = _improved(study, schedule, budget_bytes, choice.plan_seconds)
    return settle(study.graph.step, schedule)


def _improved(study: GraphStudy, schedule: Schedule, budget_bytes: int, seconds: float) -> Schedule:
    """What a local search makes of a schedule that fits; generator states that it adds may not take it over."""
    problem = study.graph.problem
    own_bytes = max(simulate(problem, schedule).peak_bytes, budget_bytes - study.most_state_bytes)
    better = settle(study.graph.step, anneal.improve(study.planned, schedule, own_bytes, seconds))
    return better if study.peak_bytes(better) <= budget_bytes else schedule


def _kept_schedule(study: GraphStudy, budget_bytes: int) -> Schedule:
    """The kept plan's schedule at the budget that it was made for; at another one the best of its curve."""
    assert study.kept is not None and study.kept_schedule is not None
    schedule = study.kept_schedule
    if study.kept.budget_bytes == budget_bytes and study.peak_bytes(schedule) <= budget_bytes:
        return schedule
    return study.fastest(budget_bytes).schedule
