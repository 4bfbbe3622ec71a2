"""The report as text, for a terminal or a log."""

from __future__ import annotations

import io

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from graphopt.base.units import format_bytes
from graphopt.problem.kinds import kind_words
from graphopt.problem.plan import Checkpoint, GraphPlan
from graphopt.report import figures
from graphopt.report.chart import timeline
from graphopt.report.data import GraphReport, Report

#: Rows of a table before it is cut; the page and the JSON have all of them.
MOST_ROWS = 12
MOST_GRAPHS = 8


def render_text(report: Report, width: int = 110, color: bool = False) -> str:
    """The whole report as text of at most `width` columns, with colours of the terminal on request."""
    parts: list[RenderableType] = [*_header(report), "", _side_by_side(_breakdown(report), _comparisons(report))]
    graph = figures.main_graph(report)
    if graph and (place := figures.peak_place(report, graph)):
        parts.append(Text(f"The peak is at {plain(place)}", style="dim"))
    parts += [Text(note, style="dim") for note in (figures.eager_note(report), plain(figures.floor_note(report)))]
    if graph and graph.timeline("chosen"):
        parts += ["", _timeline(report, graph, width)]
    for each in report.graphs[:MOST_GRAPHS]:
        parts += ["", *_checkpoints(each.plan)]
    if len(report.graphs) > MOST_GRAPHS:
        parts.append(left_out(len(report.graphs) - MOST_GRAPHS, "graphs"))
    if len(report.graphs) > 1 or any(each.break_reason for each in report.graphs):
        parts += ["", _graphs(report)]
    if report.breaks:
        parts += ["", *_breaks(report)]
    return render(parts, width, color)


def render(parts: list[RenderableType], width: int = 110, color: bool = False) -> str:
    """Rich parts as text; spaces at the ends of lines are left out."""
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
    )
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def plain(text: str) -> str:
    """Text from a model or its source, without what would steer a terminal."""
    return "".join(c if c.isprintable() else "�" for c in text)


def table(*columns: str, title: str = "", right: tuple[str, ...] = ()) -> Table:
    """An empty table in the style of all of them; columns named in `right` are aligned there."""
    made = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    return made


def _header(report: Report) -> list[RenderableType]:
    plan, fits = report.plan, figures.fits(report)
    name = Text.assemble(
        ("graphopt", "bold"), f"  {plain(plan.model)} on {plain(plan.device)}, torch {plan.torch_version}"
    )
    state = Text(figures.verdict(report), style="bold green" if fits else "bold red")
    rows = figures.summary(report)
    first = [row for row in rows if row[0] in ("budget", "predicted peak", "measured peak", "measured in training")]
    second = [row for row in rows if row not in first]
    made = plain(figures.how_planned(report)) + figures.in_pieces(plan)
    return [
        *(name, Text.assemble(state, "  ", _row(first)), _row(second)),
        *(Text(made, style="dim"), Text(figures.optimum(report), style="dim")),
    ]


def _row(figures_of_row: list[tuple[str, str]]) -> Text:
    words = (Text.assemble((f"{label} ", "dim"), (text, "bold")) for label, text in figures_of_row)
    return Text("  ·  ").join(words)


def _side_by_side(left: Table, right: Table) -> Table:
    grid = Table.grid(padding=(0, 6))
    grid.add_row(left, right)
    return grid


def _breakdown(report: Report) -> Table:
    """What fills the peak; what was measured is one figure, so it stands beside the total."""
    made = table(
        "kind", "predicted", "measured", "share", title="At the peak", right=("predicted", "measured", "share")
    )
    plan = report.plan
    for kind, size in figures.breakdown(report):
        made.add_row(Text(plain(kind_words(kind))), format_bytes(size), "", f"{size / max(plan.peak_bytes, 1):.0%}")
    seen = figures.measured_bytes(report)
    total, eager = (format_bytes(seen[0]), format_bytes(seen[1])) if seen else ("not run", "not run")
    made.add_section()
    made.add_row("total", format_bytes(plan.peak_bytes), total, "", style="bold")
    made.add_row("eager's total", format_bytes(plan.eager_peak_bytes), eager, "", style="dim")
    return made


def _comparisons(report: Report) -> Table:
    made = table("way", "peak", "of eager", "extra time", title="Compared", right=("peak", "of eager", "extra time"))
    base, eager = figures.resident_bytes(report), max(report.plan.eager_peak_bytes, 1)
    graph = figures.main_graph(report)
    for row in graph.comparisons if graph else ():
        peak = "does not fit" if row.peak_bytes is None else format_bytes(base + row.peak_bytes)
        part = "" if row.peak_bytes is None else f"{(base + row.peak_bytes) / eager:.0%}"
        extra = "" if row.overhead is None else figures.signed_percent(row.overhead)
        made.add_row(Text(plain(row.name)), peak, part, extra, style="bold" if row.name == "chosen" else "")
    return made


def _timeline(report: Report, graph: GraphReport, width: int) -> Text:
    lines = timeline(report, graph, width)
    where = f" of {plain(graph.plan.name)}" if len(report.graphs) > 1 else ""
    body = Text("\n".join(lines))
    body.highlight_regex("[▁▂▃▄▅▆▇█]+", "cyan")
    body.highlight_regex("╌+", "red")
    body.highlight_regex("░+", "dim")
    return Text.assemble((f"Memory over the steps{where}\n", "bold"), body)


def _checkpoints(plan: GraphPlan) -> list[RenderableType]:
    again = figures.made_again(plan)
    size = sum(c.bytes for c in plan.checkpoints)
    values = "1 value" if len(plan.checkpoints) == 1 else f"{len(plan.checkpoints)} values"
    title = f"Checkpoints of {plain(plan.name)}: {values}, {format_bytes(size)}; {again}"
    shown = _largest(plan.checkpoints)
    made = table("value", "bytes", "recomputed from it", "time", "module and source", right=("bytes", "time"))
    made.title = Text(title)
    made.columns[0].no_wrap = made.columns[4].no_wrap = True
    for c in shown:
        # Two lines a row: what would be cut in one has room in two.
        made.add_row(
            _two_lines(c.value, figures.shape_text(c.shape, c.dtype), 26),
            format_bytes(c.bytes),
            Text(plain(figures.counted(c.recomputes))),
            figures.seconds_text(c.recompute_seconds),
            _two_lines(c.module_path, figures.short_paths(c.source), 34),
        )
    rest = len(plan.checkpoints) - len(shown)
    return [made, left_out(rest, "smaller checkpoints")] if rest else [made]


def _largest(checkpoints: tuple[Checkpoint, ...]) -> list[Checkpoint]:
    """The largest few, in the order of the forward."""
    order = sorted(range(len(checkpoints)), key=lambda i: -checkpoints[i].bytes)[:MOST_ROWS]
    return [checkpoints[i] for i in sorted(order)]


def _graphs(report: Report) -> Table:
    made = table("graph", "time share", "own peak", "eager", "ends because", title="Graphs")
    for graph in report.graphs:
        made.add_row(
            Text(plain(graph.plan.name)),
            f"{figures.share_of_time(report, graph):.0%}",
            format_bytes(graph.plan.peak_bytes),
            format_bytes(graph.plan.eager_peak_bytes),
            Text(plain(figures.short_paths(graph.break_reason)) or "the model ends"),
        )
    return made


def _breaks(report: Report) -> list[RenderableType]:
    made = table("line", "why", "what comes behind", title="Where captures ended")
    made.columns[0].no_wrap = made.columns[2].no_wrap = True
    breaks = figures.distinct_breaks(report)
    for each in breaks[:MOST_ROWS]:
        line, _, function = figures.short_paths(each.source or "–").partition(" in ")
        behind, _, place = figures.short_paths(figures.behind_break(each)).partition(" (")
        made.add_row(
            _two_lines(line, f"in {function}" if function else "", 44),
            Text(plain(figures.short_paths(each.reason))),
            _two_lines(behind, f"({place}" if place else "", 44),
        )
    rest = len(breaks) - MOST_ROWS
    return [made, left_out(rest, "breaks")] if rest > 0 else [made]


def left_out(count: int, what: str) -> Text:
    """The line that stands for rows that were cut."""
    return Text(f"… {count} {what} left out here; all are in --html and --json", style="dim")


def _two_lines(first: str, second: str, most: int) -> Text:
    return Text.assemble(_middle(first, most), "\n", (_middle(second, most), "dim"))


def _middle(text: str, most: int) -> str:
    """Names differ at their ends: the middle is what is left out of a long one."""
    text, half = plain(text), most // 2
    return text if len(text) <= most else f"{text[: half - 1]}…{text[half - most :]}"
