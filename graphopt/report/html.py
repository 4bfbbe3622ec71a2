"""The report as one self-contained page: no network, light and dark, everything in it."""

from __future__ import annotations

from html import escape

from graphopt.base.units import format_bytes
from graphopt.problem.plan import Checkpoint, GraphPlan
from graphopt.report import figures, svg
from graphopt.report.data import GraphReport, Report
from graphopt.report.page import card, cell, page, table, tiles


def render_html(report: Report) -> str:
    """The whole report as one HTML document."""
    plan = report.plan
    body = [
        _head(report),
        tiles(figures.summary(report)),
        '<div class="two">',
        card("What fills the peak", svg.bar(report), _breakdown(report)),
        card("Compared", _comparisons(report)),
        "</div>",
    ]
    if len(report.graphs) > 1 or any(graph.break_reason for graph in report.graphs):
        body.append(card("Graphs", _graphs(report)))
    if report.breaks:
        body.append(card("Where captures ended", _breaks(report)))
    for graph in report.graphs:
        body.append(_graph(report, graph))
    return page(f"graphopt: {plan.model}", "".join(body))


def _head(report: Report) -> str:
    plan = report.plan
    kind = "fits" if figures.fits(report) else "over"
    badge = f'<span class="badge {kind}">{figures.verdict(report) if kind == "fits" else "OVER"}</span>'
    models = ", ".join(dict.fromkeys(graph.cost_model for graph in plan.graphs))
    made = (
        f"{plan.device}, torch {plan.torch_version}; planned in {report.plan_seconds:.1f} s "
        f"by {plan.planner} on {models} costs; {figures.optimum(report)}"
    )
    return f'<h1>{escape(plan.model)} {badge}</h1><div class="dim">{escape(made)}</div>\n'


def _breakdown(report: Report) -> str:
    plan = report.plan
    rows = []
    for i, (kind, size) in enumerate(figures.breakdown(report)):
        name = f'<td><span class="swatch swatch-{i % 10}"></span>{escape(kind)}</td>'
        share = f"{size / max(plan.peak_bytes, 1):.0%}"
        rows.append(f"<tr>{name}{cell(format_bytes(size), size)}<td></td>{cell(share, size)}</tr>")
    seen = figures.measured_bytes(report) or (None, None)
    rows.append(_total("total", plan.peak_bytes, seen[0], "total"))
    rows.append(_total("eager's total", plan.eager_peak_bytes, seen[1], "dim"))
    graph = figures.main_graph(report)
    where = f"at {figures.peak_place(report, graph)}" if graph and graph.peak_op else ""
    numbers_right = ("predicted", "measured", "share")
    said = (where, figures.eager_note(report), figures.floor_note(report))
    notes = "".join(f'<div class="dim">{escape(text)}</div>' for text in said)
    return table(["kind", *numbers_right], rows, numbers_right) + notes


def _total(label: str, predicted: int, measured: int | None, kind: str) -> str:
    figure = "not run" if measured is None else format_bytes(measured)
    numbers = cell(format_bytes(predicted), predicted) + cell(figure, measured or 0)
    return f'<tr class="{kind}">{cell(label)}{numbers}<td></td></tr>'


def _comparisons(report: Report) -> str:
    graph = figures.main_graph(report)
    base, eager = figures.resident_bytes(report), max(report.plan.eager_peak_bytes, 1)
    rows = []
    for row in graph.comparisons if graph else ():
        kind = ' class="total"' if row.name == "chosen" else ""
        if row.peak_bytes is None or row.overhead is None:
            rows.append(f"<tr{kind}>{cell(row.name)}<td class='n dim' colspan='3'>does not fit</td></tr>")
            continue
        peak = base + row.peak_bytes
        numbers = cell(format_bytes(peak), peak) + cell(f"{peak / eager:.0%}", peak)
        extra = cell(figures.signed_percent(row.overhead), row.overhead)
        rows.append(f"<tr{kind}>{cell(row.name)}{numbers}{extra}</tr>")
    numbers_right = ("peak", "of eager", "extra time")
    return table(["way", *numbers_right], rows, numbers_right)


def _graphs(report: Report) -> str:
    rows = [
        f"<tr>{cell(g.plan.name)}{cell(f'{figures.share_of_time(report, g):.0%}', g.plan.eager_seconds)}"
        f"{cell(format_bytes(g.plan.peak_bytes), g.plan.peak_bytes)}"
        f"{cell(format_bytes(g.plan.eager_peak_bytes), g.plan.eager_peak_bytes)}"
        f"{cell(g.break_reason or 'the model ends')}</tr>"
        for g in report.graphs
    ]
    numbers = ("time share", "own peak", "eager")
    return table(["graph", *numbers, "ends because"], rows, numbers)


def _breaks(report: Report) -> str:
    rows = [
        f"<tr>{cell(each.source or '–', kind='code')}{cell(each.reason)}{cell(figures.behind_break(each))}</tr>"
        for each in figures.distinct_breaks(report)
    ]
    return table(["line", "why", "what comes behind"], rows, ())


def _graph(report: Report, graph: GraphReport) -> str:
    name = graph.plan.name if len(report.graphs) > 1 else ""
    suffix = f" of {name}" if name else ""
    parts = []
    if graph.live_bytes and graph.eager_live_bytes:
        legend = "".join(
            f'<span><i class="swatch" style="background:var(--{color})"></i>{text}</span>'
            for color, text in (("chosen", "chosen"), ("eager", "eager"), ("k0", "resident"), ("budget", "budget"))
        )
        drawing = svg.timeline(report, graph)
        parts.append(card(f"Memory over the steps{suffix}", drawing, f'<div class="legend">{legend}</div>'))
    if len(graph.curve) > 1:
        base = figures.resident_bytes(report)
        points = [(base + number, extra, "") for number, extra in graph.curve]
        seconds, eager = graph.plan.seconds, graph.plan.eager_seconds
        chosen = (base + graph.plan.peak_bytes, seconds / eager - 1 if eager else 0.0)
        budget = base + graph.plan.budget_bytes
        parts.append(card(f"Extra time for less memory{suffix}", svg.pareto_chart(points, chosen, budget)))
    parts.append(card(_checkpoint_title(graph.plan, suffix), _checkpoints(graph.plan.checkpoints)))
    return "".join(parts)


def _checkpoint_title(plan: GraphPlan, suffix: str) -> str:
    size = format_bytes(sum(c.bytes for c in plan.checkpoints))
    again = figures.made_again(plan)
    return f"Checkpoints{suffix}: {len(plan.checkpoints)}, {size}; {again}"


def _checkpoints(checkpoints: tuple[Checkpoint, ...]) -> str:
    rows = [
        f"<tr>{cell(c.value, kind='code')}{cell(format_bytes(c.bytes), c.bytes)}{cell(figures.shape_text(c))}"
        f"{cell(figures.counted(c.recomputes, most=6))}"
        f"{cell(figures.seconds_text(c.recompute_seconds), c.recompute_seconds)}"
        f"{cell(c.module_path, kind='code')}{cell(c.source, kind='code')}</tr>"
        for c in checkpoints
    ]
    columns = ["value", "bytes", "shape", "recomputed from it", "time", "module", "source"]
    return table(columns, rows, ("bytes", "time"), sortable=True)
