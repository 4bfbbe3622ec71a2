"""Planned graphs -> Report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graphopt.base.errors import InfeasibleError
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.plan.floor import floor_changes
from graphopt.plan.generator_states import with_generator_states
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.shares import beside_bytes
from graphopt.planners import PLANNERS
from graphopt.problem.plan import Plan
from graphopt.problem.schedule import Schedule, Simulation, lifetimes, simulate
from graphopt.report.data import Comparison, GraphReport, Report
from graphopt.report.timeline import GraphTable, GraphTimeline, OpRow, ValueRow

#: Of what would lower the least budget.
_MOST_CHANGES = 4


def build_report(
    plan: Plan, planned: Sequence[PlannedGraph], plan_seconds: float, *, run_together: bool = True
) -> Report:
    """Everything that is shown of a plan; runs sqrt_n for its comparison row.

    Graphs that `run_together` hold what they save while the others run, as those of one model do.
    """
    every = _timelines(planned, run_together)
    reports = [
        _graph_report(each, timelines, plan.resident_bytes) for each, timelines in zip(planned, every, strict=True)
    ]
    return Report(plan, tuple(reports), plan_seconds)


def _graph_report(
    planned: PlannedGraph, timelines: tuple[GraphTimeline, ...], resident_bytes: Mapping[str, int]
) -> GraphReport:
    study = planned.study
    changes = floor_changes(study, resident_bytes, asks_planners=False)[:_MOST_CHANGES]
    return GraphReport(
        plan=planned.plan,
        break_reason=planned.captured.break_reason,
        timelines=timelines,
        comparisons=_comparisons(planned),
        curve=tuple((each.peak_bytes, _overhead(planned, each.seconds), each.planner) for each in study.curve),
        floor_changes=tuple(map(str, changes)),
    )


def _timelines(planned: Sequence[PlannedGraph], run_together: bool) -> list[tuple[GraphTimeline, ...]]:
    """For each graph its timelines: eager's, the chosen one, and that of the least budget."""
    tables: dict[int, GraphTable] = {}

    def table(study: GraphStudy) -> GraphTable:
        """One for each form, though several schedules are of it."""
        return tables.setdefault(id(study.graph), _table(study.graph))

    found: list[list[GraphTimeline]] = [[] for _ in planned]
    for name in ("eager", "chosen", "minimum"):
        runs = [_run(name, each) for each in planned]
        studies, schedules = [study for study, *_ in runs], [schedule for _, schedule, _ in runs]
        beside = beside_bytes(studies, schedules) if run_together else [(0, 0)] * len(runs)
        for place, (study, schedule, simulation) in enumerate(runs):
            found[place].append(_timeline(name, table(study), study.graph, schedule, simulation, beside[place]))
    return [tuple(timelines) for timelines in found]


def _run(name: str, planned: PlannedGraph) -> tuple[GraphStudy, Schedule, Simulation]:
    """Which graph, in which order, and what the simulator says of that."""
    study, origin = planned.study, planned.study.origin
    if name == "eager":
        return origin, origin.graph.captured_schedule, origin.eager
    schedule = planned.schedule if name == "chosen" else study.curve[0].schedule
    return study, schedule, study.simulated(schedule)


def _timeline(
    name: str,
    table: GraphTable,
    graph: CapturedGraph,
    schedule: Schedule,
    simulation: Simulation,
    beside: tuple[int, int],
) -> GraphTimeline:
    states = with_generator_states(graph, schedule, np.zeros(len(schedule), dtype=np.int64))
    spans = lifetimes(graph.problem, schedule)
    timeline = GraphTimeline(
        name=name,
        table=table,
        schedule=schedule,
        boundary_step=schedule.index(graph.step.boundary),
        live_bytes=tuple(simulation.live_bytes.tolist()),
        state_bytes=tuple(states.tolist()),
        lifetimes=tuple(sorted(spans, key=lambda span: (span[1], span[0]))),
        beside_bytes=beside,
    )
    alive = simulate(graph.problem, schedule).live_bytes + states
    assert (alive == simulation.live_bytes).all(), "what is shown of a step is not what the simulator has there"
    return timeline


def _table(graph: CapturedGraph) -> GraphTable:
    ops = tuple(
        OpRow(
            name=info.name,
            module_path=info.module_path,
            source=info.source,
            seconds=op.seconds,
            workspace_bytes=op.workspace_bytes,
            inputs=op.inputs,
            outputs=op.outputs,
            backward=op.backward,
            recomputable=op.recomputable,
            moves=info.transfer is not None,
        )
        for info, op in zip(graph.step.ops, graph.problem.ops, strict=True)
    )
    rows = zip(graph.step.values, graph.problem.values, graph.problem.producer, strict=True)
    values = (ValueRow(info.name, value.bytes, info.kind, info.shape, info.dtype, maker) for info, value, maker in rows)
    return GraphTable(ops, tuple(values))


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
