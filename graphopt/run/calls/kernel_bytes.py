"""What compiled kernels take beside their plan: measured once they are made, and planned for.

A plan knows which values a compiler is expected to store, not what it will do: fusions keep inputs longer, reuse memory
or store less. So each plan's kernels are run once on made-up inputs. Where they take more than the budget leaves, or
leave so much that a faster plan would fit, the plan is made again with that difference counted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from graphopt.base.errors import BudgetError
from graphopt.base.units import format_bytes
from graphopt.run.calls.call_plan import CallPlan
from graphopt.run.graphs.call_key import CallKey

logger = logging.getLogger("graphopt")

#: What is counted beside the graphs.
KERNELS = "compiled kernels beside the plan"
#: Plans that are compiled for one call; most fit at once, and a compilation takes as long as torch.compile's.
_MOST_ROUNDS = 4
#: A faster plan is compiled where it saves so much of a step: less is within what kernels' times differ by.
_WORTH = 0.02


@dataclass(eq=False)
class _Fit:
    """The rounds of one call: what its kernels took beside the plan last, and at the least in all."""

    beside_bytes: int = 0
    rounds: int = 0
    smallest_bytes: int | None = None
    was_above: bool = False


class KernelBytes:
    """What is known of the kernels of one model's calls; nothing where eager's kernels run."""

    def __init__(self) -> None:
        self._fits: dict[CallKey, _Fit] = {}

    def forget(self) -> None:
        """What is planned anew is measured anew."""
        self._fits.clear()

    def resident(self, key: CallKey) -> dict[str, int]:
        """What to count beside the graphs of calls like `key`, by kind."""
        fit = self._fits.get(key)
        return {KERNELS: fit.beside_bytes} if fit is not None and fit.beside_bytes else {}

    def as_measured(self, call: CallPlan) -> CallPlan:
        """The plan of a call with what its kernels were measured to take."""
        beside = _beside_bytes(call)
        others = {kind: size for kind, size in call.resident_bytes.items() if kind != KERNELS}
        return replace(call, resident_bytes={**others, KERNELS: beside} if beside else others)

    def wants_another(self, call: CallPlan, budget_bytes: int) -> bool:
        """Whether a call whose kernels were just made and measured should be planned again.

        Raises BudgetError where no plan is left that could fit, with the least that was measured.
        """
        beside = _beside_bytes(call)
        fit = self._fits.setdefault(call.key, _Fit())
        measured = self.as_measured(call)
        excess_bytes = measured.peak_bytes - budget_bytes
        fit.rounds += 1
        fit.beside_bytes = beside
        fit.smallest_bytes = min(measured.peak_bytes, fit.smallest_bytes or measured.peak_bytes)
        logger.info(
            "Inductor's kernels take %s where %s were planned (round %d)",
            *map(format_bytes, (measured.peak_bytes, measured.peak_bytes - beside)),
            fit.rounds,
        )
        if excess_bytes <= 0:
            return not fit.was_above and fit.rounds < _MOST_ROUNDS and _is_worth_another(call, -excess_bytes)
        fit.was_above = True
        if fit.rounds >= _MOST_ROUNDS or _is_smallest(call):
            raise _error(fit, measured.resident_bytes, budget_bytes)
        return True


def is_compiled(call: CallPlan) -> bool:
    """Whether other kernels than eager's run a call."""
    return any(graph.compiled[call.key].lowered is not None for graph in call.graphs)


def _beside_bytes(call: CallPlan) -> int:
    """What the kernels take beside the plan, at the most of its graphs; below 0 where they take less."""
    found = []
    for graph, planned in zip(call.graphs, call.planned, strict=True):
        lowered = graph.compiled[call.key].lowered
        if lowered is not None and lowered.peak_bytes is not None:
            found.append(lowered.peak_bytes - planned.peak_bytes)
    return max(found, default=0)


def _is_worth_another(call: CallPlan, room_bytes: int) -> bool:
    """Whether a faster plan of a graph that is the whole model would fit in the room that is left."""
    if len(call.planned) != 1:
        return False
    (planned,) = call.planned
    faster = planned.study.fastest(planned.peak_bytes + room_bytes)
    return faster.seconds < planned.simulation.seconds * (1 - _WORTH)


def _is_smallest(call: CallPlan) -> bool:
    return all(planned.peak_bytes <= planned.study.minimum_bytes for planned in call.planned)


def _error(fit: _Fit, resident_bytes: Mapping[str, int], budget_bytes: int) -> BudgetError:
    least = fit.smallest_bytes or 0
    drivers = tuple(f"{kind} {format_bytes(size)}" for kind, size in resident_bytes.items() if size > 0)
    return BudgetError(
        f"{format_bytes(budget_bytes)} ({budget_bytes:,} bytes) is too small for compiler='inductor': of {fit.rounds} "
        f"plan(s) that were compiled, the kernels of the smallest were measured at {format_bytes(least)} "
        f"({least:,} bytes).\nWhat is there beside them: {'; '.join(drivers)}.\n"
        "What to try: compiler='eager', whose peaks are as planned; a smaller micro-batch; a larger budget.",
        least,
        drivers,
    )
