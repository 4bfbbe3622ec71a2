"""The report as one self-contained page: what the template shows, in words and figures."""

from __future__ import annotations

from typing import Any

from graphopt.base.glance import Drawing, Line, stairs
from graphopt.base.units import format_bytes
from graphopt.problem.kinds import kind_words
from graphopt.report import figures
from graphopt.report.chart import folded
from graphopt.report.data import GraphReport, Report
from graphopt.report.module_tree import module_tree
from graphopt.report.page_data import curve_points, page_data, shown_ways
from graphopt.report.pages import render_page

#: Columns of the drawing that stands where there is no script, and measured steps that are listed.
_COLUMNS, _MOST_STEPS = 300, 60


def render_html(report: Report) -> str:
    """The whole report as one HTML document."""
    plan = report.plan
    fits = figures.fits(report)
    numerics = figures.in_pieces(plan).removeprefix("  ·  ")
    return render_page(
        "report.html",
        data=page_data(report),
        plan=plan,
        fits=fits,
        verdict=figures.verdict(report),
        made=[
            f"{plan.device}, torch {plan.torch_version}; {figures.how_planned(report)}",
            figures.optimum(report) + (f"; {numerics}" if numerics else ""),
        ],
        summary=labelled(figures.summary(report)),
        breakdown=_breakdown(report),
        free=max(1 - plan.peak_bytes / max(plan.budget_bytes, 1), 0),
        seen=figures.measured_bytes(report),
        ways=_ways(report),
        notes=_notes(report),
        graphs=[_graph(report, graph) for graph in report.graphs],
        breaks=[
            {
                "source": each.source or "–",
                "reason": each.reason,
                "behind": figures.short_paths(figures.behind_break(each)),
            }
            for each in figures.distinct_breaks(report)
        ],
        eager=max(plan.eager_peak_bytes, 1),
        history=_history(report),
        history_note=_history_note(report),
    )


def labelled(rows: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Label, figure, and what stands behind it in brackets, which is set smaller; where there are several, none is."""
    found = []
    for label, text in rows:
        number, _, note = text.partition(" (") if text.endswith(")") and text.count("(") == 1 else (text, "", "")
        found.append((label, number, note.removesuffix(")")))
    return found


def curve_drawing(points: list[tuple[int, float, str]], chosen: tuple[int, float] | None = None) -> Drawing:
    """A memory/time curve without a script."""
    line = Line(stairs([(size, extra) for size, extra, _ in points]), filled=True)
    ends = ((size, figures.signed_percent(extra)) for size, extra, _ in (points[0], points[-1]))
    left, right = (f"{format_bytes(size)}: {extra} time" for size, extra in ends)
    return Drawing((line,), "Extra time over peak memory", left, right, (chosen,) if chosen else ())


def timeline_drawing(report: Report, graph: GraphReport) -> Drawing:
    """Memory over the step without a script: the chosen plan shaded, eager and the budget behind it."""
    middle, chosen = folded(report, graph, "chosen", _COLUMNS)
    _, eager = folded(report, graph, "eager", _COLUMNS, middle)
    lines = [Line(tuple(enumerate(eager))), Line(tuple(enumerate(chosen)), filled=True)]
    budget = report.plan.budget_bytes
    if budget <= 1.25 * max(*chosen, *eager):
        lines.append(Line(((0, budget), (_COLUMNS - 1, budget)), dashed=True))
    peak = f"peak {format_bytes(max(chosen))}, eager {format_bytes(max(eager))}"
    return Drawing(tuple(lines), "Memory over the step, eager and chosen", peak, "forward, then backward")


def _breakdown(report: Report) -> list[dict[str, Any]]:
    whole = max(report.plan.budget_bytes, report.plan.peak_bytes, 1)
    return [
        {
            "words": kind_words(kind),
            "bytes": size,
            "share": max(size / whole, 0),
            "percent": f"{size / max(report.plan.peak_bytes, 1):.0%}",
        }
        for kind, size in figures.breakdown(report)
    ]


def _ways(report: Report) -> list[dict[str, Any]]:
    graph = figures.main_graph(report)
    base, eager = figures.resident_bytes(report), max(report.plan.eager_peak_bytes, 1)
    rows = []
    for row in graph.comparisons if graph else ():
        size = None if row.peak_bytes is None or row.overhead is None else base + row.peak_bytes
        percent = "" if size is None else f"{size / eager:.0%}"
        rows.append({"name": row.name, "bytes": size, "percent": percent, "extra": row.overhead})
    return rows


def _notes(report: Report) -> list[str]:
    graph = figures.main_graph(report)
    place = figures.peak_place(report, graph) if graph else ""
    notes = [f"The peak is at {place}"] if place else []
    return [*notes, figures.eager_note(report), figures.floor_note(report).removesuffix(".")]


def _graph(report: Report, graph: GraphReport) -> dict[str, Any]:
    plan, points = graph.plan, curve_points(report, graph)
    of = f" of {plan.name}" if len(report.graphs) > 1 else ""
    chosen = figures.resident_bytes(report) + plan.peak_bytes, plan.seconds / (plan.eager_seconds or 1.0) - 1
    size = format_bytes(sum(c.bytes for c in plan.checkpoints))
    is_drawn = bool(graph.timeline("chosen") and graph.timeline("eager"))
    return {
        "plan": plan,
        "of": of,
        "why": graph.break_reason,
        "share": f"{figures.share_of_time(report, graph):.0%}",
        "plans": [timeline.name for timeline in graph.timelines] if is_drawn else [],
        "timeline_drawing": timeline_drawing(report, graph) if is_drawn else "",
        "points": points,
        "ways": [name for name, *_ in shown_ways(graph)] if graph is figures.main_graph(report) else [],
        "curve_drawing": curve_drawing(points, chosen) if points else "",
        "tree": module_tree(report.plan.model, plan.modules),
        "title": f"Checkpoints{of}: {len(plan.checkpoints)}, {size}; {figures.made_again(plan)}",
    }


def _history(report: Report) -> list[dict[str, Any]]:
    """The steps that say something: the first, those behind which the plan is another, those over it, and the last."""
    room = report.plan.budget_bytes - report.plan.resident_bytes.get("reserve", 0)
    rows = []
    for number, step in enumerate(report.history, start=1):
        before = report.history[number - 2].predicted_bytes if number > 1 else step.predicted_bytes
        what = []
        if step.predicted_bytes != before:
            what.append(f"planned anew: {format_bytes(before)} before")
        if step.measured_bytes > room:
            what.append(f"{step.measured_bytes - room:,} bytes over the budget")
        if what or number in (1, len(report.history)):
            row = {"number": number, "predicted": step.predicted_bytes, "measured": step.measured_bytes}
            rows.append({**row, "place": step.place, "what": "; ".join(what)})
    return rows[-_MOST_STEPS:]


def _history_note(report: Report) -> str:
    count = len(report.history)
    steps = "one step was" if count == 1 else f"the last {count:,} steps were"
    return (
        f"{steps.capitalize()} measured. Listed are the first, those that changed the plan or took more, and the last."
    )
