"""The report as JSON data: everything that is known."""

from __future__ import annotations

from typing import Any

from graphopt.base.records import encode
from graphopt.report import figures
from graphopt.report.data import Report

SCHEMA = "graphopt.report/1"


def report_to_json(report: Report) -> dict[str, Any]:
    """All fields of the report but kept schedules, with the few figures that are derived from them."""
    plan, data = report.plan, encode(report)
    for each in (*data["plan"]["graphs"], *(graph["plan"] for graph in data["graphs"])):
        del each["curve"]  # the points are in `graphs`; their schedules are for the plan's own file
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
