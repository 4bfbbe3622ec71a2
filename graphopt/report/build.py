"""Planned graphs -> Report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphopt.base.errors import InfeasibleError
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.graph.step_graph import OpInfo
from graphopt.plan.floor import floor_changes
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.planners import PLANNERS
from graphopt.problem.plan import Plan
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule, Simulation, lifetimes, simulate
from graphopt.report.data import Comparison, GraphReport, Report

#: Of what would lower the least budget.
_MOST_CHANGES = 4


def build_report(plan: Plan, planned: Sequence[PlannedGraph], plan_seconds: float) -> Report:
    """Everything that is shown of a plan; runs sqrt_n for its comparison row."""
    return Report(plan, tuple(_graph_report(each, plan.resident_bytes) for each in planned), plan_seconds)


def _graph_report(planned: PlannedGraph, resident_bytes: Mapping[str, int]) -> GraphReport:
    captured, study, schedule = planned.captured, planned.study, planned.schedule
    boundary = captured.step.boundary
    peak_op = captured.step.ops[schedule[planned.simulation.peak_step]]
    return GraphReport(
        plan=planned.plan,
        break_reason=captured.break_reason,
        live_bytes=tuple(planned.simulation.live_bytes.tolist()),
        eager_live_bytes=tuple(study.origin.eager.live_bytes.tolist()),
        boundary_step=schedule.index(boundary),
        eager_boundary_step=study.origin.graph.step.boundary,
        peak_step=planned.simulation.peak_step,
        peak_op=peak_op.name,
        peak_source=peak_op.source,
        peak_breakdown=_peak_breakdown(captured, schedule, planned.simulation),
        comparisons=_comparisons(planned),
        curve=tuple((candidate.peak_bytes, _overhead(planned, candidate.seconds)) for candidate in study.curve),
        floor_changes=tuple(
            str(change) for change in floor_changes(study, resident_bytes, asks_planners=False)[:_MOST_CHANGES]
        ),
    )


def _peak_breakdown(captured: CapturedGraph, schedule: Schedule, simulation: Simulation) -> dict[str, int]:
    """What is alive at the peak: by kind, values made a second time apart."""
    step = simulation.peak_step
    known = ("activations", "recomputed", "fetched", "gradients", "outputs", "tangents", "workspace")
    kinds = dict.fromkeys(known, 0)
    made = runs_before(captured.problem, schedule)
    for value, first, last in lifetimes(captured.problem, schedule):
        if first <= step <= last:
            info = captured.step.values[value]
            kinds[kind_of(info.kind, captured.step.ops[schedule[first]], again=made[first])] += info.bytes
    kinds["workspace"] = captured.problem.ops[schedule[step]].workspace_bytes
    return {kind: size for kind, size in kinds.items() if size}


def kind_of(kind: str, maker: OpInfo, *, again: bool) -> str:
    """The kind of a value as it is shown: apart where its maker ran before, and made or fetched it `again`."""
    if not again or kind != "activations":
        return kind
    return "recomputed" if maker.transfer is None else "fetched"


def runs_before(problem: Problem, schedule: Schedule) -> list[bool]:
    """For each step whether its op has run before."""
    seen = [False] * len(problem.ops)
    again = []
    for op in schedule:
        again.append(seen[op])
        seen[op] = True
    return again


def _comparisons(planned: PlannedGraph) -> tuple[Comparison, ...]:
    study, problem, chosen = planned.study, planned.captured.problem, planned.plan
    least = study.curve[0]

    def row(name: str, peak_bytes: int, seconds: float) -> Comparison:
        return Comparison(name, peak_bytes, _overhead(planned, seconds))

    try:
        segments = PLANNERS["sqrt_n"](study.planned, chosen.budget_bytes - study.most_state_bytes)
        result = simulate(problem, segments)
        seconds = result.seconds - study.free_seconds
        by_segments = row("sqrt_n", result.peak_bytes + study.most_state_bytes, seconds)
    except InfeasibleError:
        by_segments = Comparison("sqrt_n", None, None)
    return (
        row("eager", study.origin.eager.peak_bytes, study.origin.eager.seconds),
        by_segments,
        row("chosen", chosen.peak_bytes, chosen.seconds),
        row("minimum", least.peak_bytes, least.seconds),
    )


def _overhead(planned: PlannedGraph, seconds: float) -> float:
    """Extra time over the captured graph as it is, a fraction."""
    return seconds / (planned.study.origin.eager.seconds or 1.0) - 1
