"""Numbers and words that the text report and the page share."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from graphopt.base.units import format_bytes
from graphopt.problem.graph_break import GraphBreak
from graphopt.problem.pieces import WHOLE
from graphopt.problem.plan import GraphPlan, Plan
from graphopt.report.data import CompiledKernels, GraphReport, Measured, OutsideShare, Report, TrainedSteps
from graphopt.report.timeline import kinds_at


def fits(report: Report) -> bool:
    """Whether the peak, measured where it was and predicted otherwise, is inside the budget.

    What a training loop's last step took is nearer to what the next one will take than what verification measured.
    """
    seen, trained = measured_bytes(report), report.trained
    peak_bytes = seen[0] if seen else report.plan.peak_bytes
    if trained is not None:
        peak_bytes = trained.peak_bytes + report.plan.resident_bytes.get("reserve", 0)
    return peak_bytes <= report.plan.budget_bytes


def verdict(report: Report) -> str:
    """`fits` in words. What runs between the graphs of a model that breaks is in no plan, only in what is measured."""
    if not fits(report):
        return "DOES NOT FIT"
    in_pieces = is_in_pieces(report)
    is_measured = report.measured is not None or report.trained is not None
    return "FITS AS FAR AS IT IS CAPTURED" if in_pieces and not is_measured else "FITS"


def in_pieces(plan: Plan) -> str:
    """In how many pieces the largest values are made, which is another order of sums than eager's; "" where whole."""
    if plan.numerics == "bitwise":
        return ""
    divided = [str(graph.pieces) for graph in plan.graphs if graph.pieces != WHOLE]
    return f"  ·  numerics {plan.numerics}: largest values {', '.join(dict.fromkeys(divided)) or 'whole'}"


def floor_note(report: Report) -> str:
    """The least budget, and what would lower it."""
    note = f"The least budget is {format_bytes(report.plan.minimum_bytes)}"
    graph = main_graph(report)
    if graph is None or not graph.floor_changes:
        return f"{note}."
    return f"{note}. What would lower it, by so much or more: {'; '.join(graph.floor_changes)}."


def made_again(plan: GraphPlan) -> str:
    """How much is computed or fetched again, in words."""
    again = f"{len(plan.recomputed)} ops run again" if plan.recomputed else "nothing is recomputed"
    if not plan.fetched:
        return again
    values = "value is" if len(plan.fetched) == 1 else "values are"
    return f"{again}, {len(plan.fetched)} {values} fetched ({format_bytes(plan.moved_bytes)} moved out and back)"


def is_in_pieces(report: Report) -> bool:
    """Whether something of the model is in none of the graphs."""
    return len(report.graphs) > 1 or bool(report.breaks) or any(graph.break_reason for graph in report.graphs)


def distinct_breaks(report: Report) -> list[GraphBreak]:
    """Each cause at each line once: Dynamo comes to a break in every function that leads there.

    Where one of these is given up for it, that is what counts.
    """
    found: dict[tuple[str, str], GraphBreak] = {}
    for each in report.breaks:
        place = (each.reason, each.source)
        if place not in found or each.given_up:
            found[place] = each
    return list(found.values())


def behind_break(graph_break: GraphBreak) -> str:
    """What becomes of what comes behind a break."""
    return f"runs as it is: all of {graph_break.given_up}" if graph_break.given_up else "is captured anew"


def measured_bytes(report: Report) -> tuple[int, int] | None:
    """Measured peaks, optimized and eager, with the reserve, which no run allocates but predictions count."""
    if report.measured is None:
        return None
    reserve = report.plan.resident_bytes.get("reserve", 0)
    return report.measured.peak_bytes + reserve, report.measured.eager_peak_bytes + reserve


def resident_bytes(report: Report) -> int:
    """What is on the device before a step starts."""
    return sum(report.plan.resident_bytes.values())


def main_graph(report: Report) -> GraphReport | None:
    """The graph that the step's peak is in."""
    return max(report.graphs, key=lambda graph: graph.peak_bytes, default=None)


def peaks_in_tail(report: Report) -> bool:
    """Whether a training step's peak is at its end, while the optimizer updates."""
    graph = main_graph(report)
    return report.step is not None and sum(report.step.tail_bytes.values()) > (graph.peak_bytes if graph else 0)


def breakdown(report: Report) -> list[tuple[str, int]]:
    """What fills the predicted peak, by kind: resident first, then what is alive in the graph or in the update."""
    rows = [(kind, size) for kind, size in report.plan.resident_bytes.items() if size]
    if report.step is not None and peaks_in_tail(report):
        return [*rows, *report.step.tail_bytes.items()]
    graph = main_graph(report)
    chosen = graph.timeline("chosen") if graph else None
    rows += kinds_at(chosen, chosen.peak_step).items() if chosen else ()
    rest = report.plan.peak_bytes - sum(size for _, size in rows)
    if report.compiled is not None and (beside := report.compiled.measured_bytes - report.compiled.planned_bytes):
        rows.append(("compiled kernels beside the plan", beside))
        rest -= beside
    return [*rows, ("held by other graphs", rest)] if rest > 0 and len(report.graphs) > 1 else rows


def share_of_time(report: Report, graph: GraphReport) -> float:
    """The part of eager's time that is spent in this graph."""
    whole = sum(g.plan.eager_seconds for g in report.graphs)
    return graph.plan.eager_seconds / whole if whole else 0.0


def counted(names: Sequence[str], most: int = 3) -> str:
    """`("gelu", "mm", "gelu")` -> `"3: gelu ×2, mm"`; overload and position suffixes are left out."""
    kinds = Counter(op_kind(name) for name in names)
    shown = [kind if count == 1 else f"{kind} ×{count}" for kind, count in kinds.most_common(most)]
    return f"{len(names)}: {', '.join(shown)}{', …' if len(kinds) > most else ''}" if names else "–"


def op_kind(name: str) -> str:
    """`"aten.native_layer_norm.default"`, `"native_layer_norm_3"` -> `"native_layer_norm"`."""
    name = name.removeprefix("aten.").partition(".")[0]
    head, _, tail = name.rpartition("_")
    return head if head and tail.isdigit() else name


def shape_text(shape: Sequence[int], dtype: str) -> str:
    """`"4×256×256 f32"`."""
    short = dtype.removeprefix("torch.").replace("bfloat", "bf").replace("float", "f").replace("int", "i")
    return f"{'×'.join(map(str, shape)) or 'scalar'} {short}"


def short_paths(text: str) -> str:
    """Paths in a text without their folders."""
    return re.sub(r"(?:[A-Za-z]:)?[\\/](?:[^\\/:\s]+[\\/])+", "", text)


def peak_place(report: Report, graph: GraphReport) -> str:
    """The op at the peak, and where it comes from."""
    if peaks_in_tail(report):
        return "the optimizer's update"
    chosen = graph.timeline("chosen")
    op = chosen.peak_op if chosen else None
    return "" if op is None else op.name + (f", {short_paths(op.source)}" if op.source else "")


def signed_percent(fraction: float) -> str:
    """`0.234` -> `"+23.4%"`."""
    return f"{round(fraction, 3) + 0.0:+.1%}"  # no minus for what rounds to nothing


def seconds_text(seconds: float) -> str:
    """Seconds with a unit that suits them."""
    if seconds == 0:
        return "0"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def summary(report: Report) -> list[tuple[str, str]]:
    """The figures of the first lines: label and text."""
    plan, measured, seen = report.plan, report.measured, measured_bytes(report)
    rows = [
        ("budget", format_bytes(plan.budget_bytes)),
        ("predicted peak", f"{format_bytes(plan.peak_bytes)} ({plan.peak_bytes / max(plan.budget_bytes, 1):.0%})"),
    ]
    if seen:
        rows.append(("measured peak", f"{format_bytes(seen[0])} ({seen[0] / max(plan.budget_bytes, 1):.0%})"))
    if report.trained is not None:
        rows.append(("measured in training", _trained(report.trained)))
    rows += [("counted as measured", str(operator)) for operator in report.scratch]
    if report.outside is not None or is_in_pieces(report):
        rows.append(("outside of the plan", _outside(report.outside)))
    captured = format_bytes(plan.eager_peak_bytes)
    eager = f"{format_bytes(seen[1])} (measured; {captured} as captured)" if seen else f"{captured} (as captured)"
    rows.append(("eager peak", eager))
    rows.append(("predicted time", signed_percent(plan.overhead)))
    if measured and measured.time_ratio is not None:
        rows.append(("measured time", _measured_time(measured)))
    if report.compiled is not None:
        rows.append(("Inductor", _compiled(report.compiled)))
    if plan.sizes:
        rows.append(("one capture for", _sizes(plan.sizes)))
    rows += [("where", condition) for condition in report.size_conditions]
    rows.append(("smallest budget", format_bytes(plan.minimum_bytes)))
    if report.step is not None:
        step = report.step
        rows.append(("micro-batches", f"{step.micro_batches} of {step.micro_rows} rows"))
        rows.append(("predicted seconds a step", seconds_text(step.seconds)))
        if step.ranks > 1:
            rows.append(("sent by each of the ranks", f"{format_bytes(step.sent_bytes)} a step, {step.ranks} ranks"))
        rows += [*(("gradients", line) for line in step.exchange), *step.ways]
    return rows


def _sizes(sizes: Mapping[str, tuple[int, int]]) -> str:
    """The sizes of inputs that differ from call to call, and those that this plan was chosen for."""
    found = [f"{name} ({least if least == most else f'{least} to {most}'})" for name, (least, most) in sizes.items()]
    return f"every {', '.join(found)}"


def _compiled(kernels: CompiledKernels) -> str:
    rounds = "" if kernels.rounds == 1 else f" in {kernels.rounds} rounds"
    return (
        f"{format_bytes(kernels.planned_bytes)} planned, {format_bytes(kernels.measured_bytes)} measured; compiled"
        f"{rounds} in {seconds_text(kernels.compile_seconds)}"
    )


def _trained(steps: TrainedSteps) -> str:
    over = f"; {steps.over_budget} over the budget" if steps.over_budget else ""
    if steps.count == 1:
        return f"{format_bytes(steps.peak_bytes)}, one step{over}"
    return (
        f"{format_bytes(steps.peak_bytes)} now, at most {format_bytes(steps.most_bytes)} in {steps.count} steps{over}"
    )


def _outside(share: OutsideShare | None) -> str:
    if share is None:
        return "not measured"
    parts = [] if share.seconds_share is None else [f"{share.seconds_share:.0%} of the time"]
    if share.bytes is not None:
        parts.append(f"{format_bytes(share.bytes)} of {format_bytes(share.peak_bytes)} at the peak")
    steps = "one step" if share.steps == 1 else f"{share.steps} steps"
    return f"{' and '.join(parts)} ({steps if share.steps else 'of one forward alone'})"


def _measured_time(measured: Measured) -> str:
    """The median ratio, with the quartiles where they are known."""
    assert measured.time_ratio is not None
    median = signed_percent(measured.time_ratio - 1)
    if measured.time_quartiles is None:
        return median
    lower, upper = (signed_percent(ratio - 1) for ratio in measured.time_quartiles)
    return f"{median} (quartiles {lower} to {upper}, {measured.time_rounds} rounds)"


_PLANNERS = {"auto": "the best of all planners", "none": "no planner, as it fits as it is"}
_COST_MODELS = {
    "profiled": "operators timed on this device",
    "roofline": "times estimated from the device's speed",
}


def how_planned(report: Report) -> str:
    """How long planning took, who did it and from which times, in words."""
    graphs = report.plan.graphs
    planners = dict.fromkeys(_PLANNERS.get(each.planner, f"the planner {each.planner}") for each in graphs)
    times = dict.fromkeys(_COST_MODELS.get(each.cost_model, f"times of {each.cost_model}") for each in graphs)
    return f"planned in {report.plan_seconds:.1f} s by {', '.join(planners)}, with {', '.join(times)}"


def eager_note(report: Report) -> str:
    """What is meant by eager's predicted figures."""
    what = "Eager, predicted: the captured graph as it was traced, with nothing recomputed"
    if measured_bytes(report):
        return f"{what}; measured: the model as it is"
    verified = "" if report.step is not None else "; `graphopt verify` measures it"
    return f"{what}; the model as it is, outside of graphopt, may take more or less{verified}"


def optimum(report: Report) -> str:
    """How far the plan may be from the best there is, in words."""
    plan = report.plan
    share = " of each graph's share" if len(report.graphs) > 1 else ""
    if not plan.above_optimum:
        return f"proven optimal inside the budget{share}"
    least = f"no plan inside the budget takes less than {signed_percent(plan.bound_overhead)}"
    return f"at most {plan.above_optimum:.1%} above the optimum{share}: {least}"


def fold(values: Sequence[int], boundary: int, columns: int, boundary_column: int) -> list[int]:
    """`values` drawn into `columns`, each the highest of its steps, with the boundary where it is wanted.

    Forward and backward are scaled apart, so that schedules of different length line up.
    """
    boundary = min(max(boundary, 0), len(values))
    return [
        *_bins(values[:boundary], boundary_column),
        *_bins(values[boundary:], columns - boundary_column),
    ]


def _bins(values: Sequence[int], columns: int) -> list[int]:
    count = len(values)
    if not count:
        return [0] * columns
    edges = [i * count // columns for i in range(columns + 1)]
    return [max(values[a : max(b, a + 1)]) for a, b in itertools.pairwise(edges)]
