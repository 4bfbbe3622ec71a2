"""The report as JSON data: everything that is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from graphopt.base.records import encode
from graphopt.report import figures
from graphopt.report.data import GraphReport, Report
from graphopt.report.timeline import kinds_at

SCHEMA = "graphopt.report/1"


def report_to_json(report: Report) -> dict[str, Any]:
    """All fields of the report but schedules, with the few figures that are derived from them."""
    plan = report.plan
    bare = replace(report, graphs=tuple(replace(graph, timelines=()) for graph in report.graphs))
    data = encode(bare)
    for each in (*data["plan"]["graphs"], *(graph["plan"] for graph in data["graphs"])):
        del each["curve"]  # the points are in `graphs`; their schedules are for the plan's own file
    for graph, each in zip(report.graphs, data["graphs"], strict=True):
        del each["timelines"]
        each |= _steps(graph)
    return {
        "schema": SCHEMA,
        "fits": figures.fits(report),
        "overhead": plan.overhead,
        "bound_overhead": plan.bound_overhead,
        "above_optimum": plan.above_optimum,
        "proven_optimal": not plan.above_optimum,
        "planner": plan.planner,
        "breakdown": dict(figures.breakdown(report)),
        **data,
    }


def _steps(graph: GraphReport) -> dict[str, Any]:
    """The bytes of a graph at each step, and its peak; what is alive at which step is in the page."""
    chosen, eager = graph.timeline("chosen"), graph.timeline("eager")
    op = chosen.peak_op if chosen else None
    return {
        "live_bytes": list(chosen.live_bytes) if chosen else [],
        "eager_live_bytes": list(eager.live_bytes) if eager else [],
        "boundary_step": chosen.boundary_step if chosen else 0,
        "eager_boundary_step": eager.boundary_step if eager else 0,
        "peak_step": chosen.peak_step if chosen else 0,
        "peak_op": op.name if op else "",
        "peak_source": op.source if op else "",
        "peak_breakdown": kinds_at(chosen, chosen.peak_step) if chosen else {},
    }
