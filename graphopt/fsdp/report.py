"""The plan of a model's blocks, as text."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.base.units import format_bytes
from graphopt.fsdp.whole import MeasuredWhole, WholePlan
from graphopt.plan.block_points import BlockPoint
from graphopt.plan.chain_shares import seconds_of

#: Rows of blocks before the table is cut.
_MOST_ROWS = 24


def whole_report(model: str, names: Sequence[str], plan: WholePlan, history: Sequence[MeasuredWhole]) -> str:
    """Lines for a terminal: the whole on one rank, then block by block in the order in which they run."""
    measured = [step.measured_bytes for step in history if step.predicted_bytes]
    more = seconds_of(plan.points) / max(seconds_of(plan.eager), 1e-12) - 1
    lines = [
        f"graphopt  {model}, {len(plan.points)} blocks under FSDP2, on each rank:",
        f"  budget     {format_bytes(plan.budget_bytes)}",
        f"  predicted  {format_bytes(plan.peak_bytes)}",
        f"  measured   {format_bytes(measured[-1]) if measured else 'not yet'}",
        f"  eager      {format_bytes(plan.eager_peak_bytes)} predicted",
        f"  least      {format_bytes(plan.minimum_bytes)}",
        f"  time       {more:+.1%} in the blocks, over eager",
        f"  beside the blocks  {format_bytes(min(plan.beside.between))} all the time, "
        f"up to {format_bytes(max((*plan.beside.between, *plan.beside.forward, *plan.beside.backward)))}",
        "",
        f"  {'block':24}{'keeps':>12}{'forward':>12}{'backward':>12}{'beside it':>12}{'more time':>12}",
    ]
    rows = [_row(names[number], i, plan) for i, number in enumerate(plan.blocks)]
    lines += rows[:_MOST_ROWS]
    if len(rows) > _MOST_ROWS:
        lines.append(f"  and {len(rows) - _MOST_ROWS} more")
    return "\n".join(lines)


def _row(name: str, place: int, plan: WholePlan) -> str:
    point, eager = plan.points[place], plan.eager[place]
    beside = max(plan.beside.forward[place], plan.beside.backward[place])
    figures = (point.kept_bytes, point.forward_bytes, point.backward_bytes, beside)
    return (
        f"  {name[-24:]:24}" + "".join(f"{format_bytes(each):>12}" for each in figures) + f"{_more(point, eager):>12}"
    )


def _more(point: BlockPoint, eager: BlockPoint) -> str:
    return f"{point.seconds / eager.seconds - 1:+.1%}" if eager.seconds else ""
