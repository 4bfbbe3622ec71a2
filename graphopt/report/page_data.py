"""What the scripts of the page read: timelines by interval, never by step and value, so that it stays small."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from graphopt.problem.kinds import kind_words
from graphopt.report import figures
from graphopt.report.data import GraphReport, Report
from graphopt.report.timeline import GraphTable, GraphTimeline


def page_data(report: Report) -> dict[str, Any]:
    """All that is drawn of a report, as plain JSON data."""
    plan, main = report.plan, figures.main_graph(report)
    tail = None if report.step is None else [[kind_words(k), size] for k, size in report.step.tail_bytes.items()]
    return {
        "budget_bytes": plan.budget_bytes,
        "resident": [[kind_words(kind), size] for kind, size in plan.resident_bytes.items() if size],
        "resident_bytes": figures.resident_bytes(report),
        "tail": tail or None,
        "graphs": [_graph(report, graph, graph is main) for graph in report.graphs],
        "history": _history(report),
    }


def curve_data(
    points: Sequence[tuple[int, float, str]],
    chosen: tuple[int, float] | None = None,
    budget_bytes: int | None = None,
    bound: tuple[int, float] | None = None,
    ways: Sequence[tuple[str, int, float]] = (),
) -> dict[str, Any]:
    """A memory/time curve: bytes in the budget's own measure, extra time as a fraction."""
    listed = [list(point) for point in sorted(points)]
    return {"points": listed, "chosen": chosen, "budget": budget_bytes, "bound": bound, "ways": [*map(list, ways)]}


def curve_points(report: Report, graph: GraphReport) -> list[tuple[int, float, str]]:
    """The curve of a graph in the budget's own measure."""
    base = figures.resident_bytes(report)
    return sorted((base + size, extra, planner) for size, extra, planner in graph.curve)


def shown_ways(graph: GraphReport) -> list[tuple[str, int, float]]:
    """Ways to run a graph beside the chosen plan, as far as they fit: name, own peak bytes, extra time."""
    return [
        (row.name, row.peak_bytes, row.overhead)
        for row in graph.comparisons
        if row.peak_bytes is not None and row.overhead is not None and row.name != "chosen"
    ]


def _graph(report: Report, graph: GraphReport, is_main: bool) -> dict[str, Any]:
    tables = list({id(each.table): each.table for each in graph.timelines}.values())
    texts = _Texts()
    places = {id(table): place for place, table in enumerate(tables)}
    base, plan = figures.resident_bytes(report), graph.plan
    eager_seconds = plan.eager_seconds or 1.0
    ways = [(name, base + size, extra) for name, size, extra in shown_ways(graph)] if is_main else []
    budget_bytes = base + plan.budget_bytes
    return {
        "plans": [_plan(each, places[id(each.table)]) for each in graph.timelines],
        "tables": [_table(table, texts) for table in tables],
        "curve": curve_data(
            curve_points(report, graph),
            (base + plan.peak_bytes, plan.seconds / eager_seconds - 1),
            budget_bytes,
            (budget_bytes, plan.bound_seconds / eager_seconds - 1),
            ways,
        ),
        "texts": texts.every,
    }


def _plan(timeline: GraphTimeline, table: int) -> dict[str, Any]:
    return {
        "name": timeline.name,
        "table": table,
        "schedule": list(timeline.schedule),
        "boundary": timeline.boundary_step,
        "live": list(timeline.live_bytes),
        "states": _changes(timeline.state_bytes),
        "spans": list(itertools.chain.from_iterable(timeline.lifetimes)),
        "beside": list(timeline.beside_bytes),
    }


class _Texts:
    """Texts that come often, each once."""

    def __init__(self) -> None:
        self.every: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, text: str) -> int:
        if text not in self._places:
            self._places[text] = len(self.every)
            self.every.append(text)
        return self._places[text]


def _table(table: GraphTable, texts: _Texts) -> dict[str, Any]:
    ops = [
        [
            op.name,
            texts.place(op.module_path),
            texts.place(op.source),
            op.seconds,
            op.workspace_bytes,
            op.backward + 2 * op.recomputable + 4 * op.moves,
            list(op.inputs),
            list(op.outputs),
        ]
        for op in table.ops
    ]
    values = [
        [v.name, v.bytes, texts.place(kind_words(v.kind)), figures.shape_text(v.shape, v.dtype), v.maker]
        for v in table.values
    ]
    return {"ops": ops, "values": values}


def _changes(values: Sequence[int]) -> list[list[int]]:
    """`[step, value]` where it is another one than before; 0 before the first."""
    pairs = zip((0, *values), values, strict=False)
    return [[step, value] for step, (before, value) in enumerate(pairs) if value != before]


def _history(report: Report) -> dict[str, Any]:
    steps = report.history
    return {
        "planned": [step.predicted_bytes for step in steps],
        "measured": [step.measured_bytes for step in steps],
        "room_bytes": report.plan.budget_bytes - report.plan.resident_bytes.get("reserve", 0),
    }
