"""What to tell a user whose budget is too small: the minimum, what drives it, what to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphopt.base.errors import BudgetError
from graphopt.base.units import format_bytes
from graphopt.kernels.offload.link import DepotLink
from graphopt.plan.floor import floor_changes
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.numerics import Numerics
from graphopt.plan.offload.worth import HIDDEN_SHARE
from graphopt.plan.pieces import smallest_forms
from graphopt.problem.kinds import kind_words
from graphopt.problem.schedule import lifetimes, simulate

_SHOWN, _MOST_CHANGES = 3, 5
_MEANT_SHARE = 0.1


def budget_error(
    graphs: Sequence[GraphStudy],
    own_minimum_bytes: int,
    budget_bytes: int,
    resident_bytes: Mapping[str, int],
    planner: str,
    numerics: Numerics = "bitwise",
) -> BudgetError:
    """The error for graphs that need `own_minimum_bytes` beside what is resident."""
    resident = sum(resident_bytes.values())
    minimum_bytes = resident + own_minimum_bytes
    hungriest = max(graphs, key=lambda graph: graph.curve[0].peak_bytes)
    drivers = (*_resident_drivers(resident_bytes), *_peak_drivers(hungriest))
    advice = _advice(hungriest, own_minimum_bytes, budget_bytes - resident, planner, numerics)
    lines = [
        f"{format_bytes(budget_bytes)} ({budget_bytes:,} bytes) is too small: with planner {planner!r} this step "
        f"needs at least {format_bytes(minimum_bytes)} ({minimum_bytes:,} bytes).",
        "What fills it: " + "; ".join(drivers) + ".",
        "What to try: " + "; ".join(advice) + ".",
    ]
    # planners are asked where somebody means the budget, and not where the least is all that is asked for
    is_meant = budget_bytes >= _MEANT_SHARE * minimum_bytes
    if changes := floor_changes(hungriest, resident_bytes, asks_planners=is_meant):
        shown = "; ".join(map(str, changes[:_MOST_CHANGES]))
        lines.append(f"What would lower the least, by so much or more: {shown}.")
    return BudgetError("\n".join(lines), minimum_bytes, drivers)


def tail_error(
    study: GraphStudy,
    budget_bytes: int,
    resident_bytes: Mapping[str, int],
    tail_bytes: Mapping[str, int],
    link: DepotLink | None = None,
) -> BudgetError:
    """The error for a training step whose update alone does not fit, whatever the plan of its micro-batches."""
    resident, tail = sum(resident_bytes.values()), sum(tail_bytes.values())
    form = smallest_forms([study])[0]
    moving = form.moving(link, HIDDEN_SHARE) if link is not None else None
    least = min(each.minimum_bytes for each in (form, moving) if each is not None)
    minimum_bytes = resident + max(tail, least)
    drivers = (*_resident_drivers({**resident_bytes, **tail_bytes}), "all alive while the optimizer updates")
    lines = [
        f"{format_bytes(budget_bytes)} ({budget_bytes:,} bytes) is too small: the update of the parameters alone takes "
        f"{format_bytes(resident + tail)}, and the step needs at least {format_bytes(minimum_bytes)} "
        f"({minimum_bytes:,} bytes).",
        "What fills it: " + "; ".join(drivers) + ".",
        "What to try: offload_optimizer='file' (on a GPU 'host'), or an optimizer with less state; fewer or frozen "
        "parameters; no clipping by norm, loss scale nor accumulation, so that updates can be in the backward; a "
        "larger budget.",
    ]
    return BudgetError("\n".join(lines), minimum_bytes, drivers)


def _resident_drivers(resident_bytes: Mapping[str, int]) -> list[str]:
    return [f"{kind_words(kind)} {format_bytes(size)}" for kind, size in resident_bytes.items() if size]


def _peak_drivers(study: GraphStudy) -> list[str]:
    schedule = study.curve[0].schedule
    step = simulate(study.graph.problem, schedule).peak_step
    alive = {value for value, first, last in lifetimes(study.graph.problem, schedule) if first <= step <= last}
    values = study.graph.step.values
    gradients = sum(values[v].bytes for v in alive if values[v].kind == "gradients")
    others = sorted((v for v in alive if values[v].kind != "gradients"), key=lambda v: -values[v].bytes)
    op = study.graph.step.ops[schedule[step]]
    where = f" ({op.source})" if op.source else ""
    drivers = [f"gradients {format_bytes(gradients)}"] if gradients else []
    drivers += [f"{values[v].name} {format_bytes(values[v].bytes)}" for v in others[:_SHOWN] if values[v].bytes]
    return [*drivers, f"all alive while {op.name}{where} runs"]


def _advice(
    study: GraphStudy, own_minimum_bytes: int, own_budget_bytes: int, planner: str, numerics: Numerics
) -> list[str]:
    tips = []
    if numerics == "reordered" and study.graph.step.has_changing_sizes:
        tips.append("dynamic=False, as a graph that serves many sizes of inputs is not run in pieces")
    if study.kept:
        tips.append("planning anew, without the kept plan")
    if planner != "auto":
        tips.append("planner 'auto'")
    batch = _batch_size(study)
    fixed = sum(value.bytes for value in study.graph.step.values if value.kind == "gradients")
    growing = own_minimum_bytes - fixed
    if batch > 1 and growing > 0 and own_budget_bytes > fixed:
        fits = int(batch * (own_budget_bytes - fixed) / growing)
        if 1 <= fits < batch:
            tips.append(f"a micro-batch of about {fits} instead of {batch} (if activations grow with the batch)")
    if own_budget_bytes <= fixed:
        tips.append("fewer or frozen parameters, or lower precision: parameters and gradients alone fill the budget")
    return [*tips, "a larger budget"]


def _batch_size(study: GraphStudy) -> int:
    """The first dimension that the step's own inputs share; 1 where they share none."""
    step = study.graph.step
    inputs = (node for node in step.joint.primals if node.name not in step.static_inputs and node in step.home)
    sizes = {shape[0] for node in inputs if (shape := step.values[step.home[node]].shape)}
    return sizes.pop() if len(sizes) == 1 else 1
