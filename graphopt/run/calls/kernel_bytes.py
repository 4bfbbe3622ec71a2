"""What compiled kernels take beside their plan: measured once they are made, and planned for.

A plan knows which values a compiler is expected to store, not what it will do: fusions keep inputs longer, reuse memory
or store less. So each plan's kernels are run once on made-up inputs. Where they take more than the budget leaves, or
leave so much that a faster plan would fit, the plan is made again with that difference counted.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from graphopt.base.errors import BudgetError
from graphopt.base.units import format_bytes
from graphopt.lower.compiler import MOST_ROUNDS
from graphopt.problem.kinds import kind_words
from graphopt.run.calls.call_plan import CallPlan, MeasuredKernels
from graphopt.run.graphs.call_key import CallKey

logger = logging.getLogger("graphopt")

#: A faster plan is compiled where it saves so much of a step: less is within what kernels' times differ by.
_WORTH = 0.02


@dataclass(eq=False)
class _Fit:
    """The rounds of one call: what its kernels took beside the plan last, at the least in all, and their seconds."""

    beside_bytes: int = 0
    rounds: int = 0
    compile_seconds: float = 0.0
    smallest_bytes: int | None = None
    was_above: bool = False


class KernelBytes:
    """What is known of the kernels of one model's calls; nothing where eager's kernels run."""

    def __init__(self) -> None:
        self._fits: dict[CallKey, _Fit] = {}

    def begins(self, key: CallKey) -> None:
        """Calls like `key` are planned anew."""
        self._fits.pop(key, None)

    def forget(self) -> None:
        """What is planned anew is measured anew."""
        self._fits.clear()

    def beside_bytes(self, key: CallKey) -> int:
        """What kernels of calls like `key` took beside the plan that they were compiled from last."""
        fit = self._fits.get(key)
        return fit.beside_bytes if fit is not None else 0

    def measured(self, call: CallPlan) -> CallPlan:
        """The plan of a call whose kernels were just made, with what they took."""
        fit = self._fits.setdefault(call.key, _Fit())
        fit.beside_bytes = _beside_bytes(call)
        fit.rounds += 1
        fit.compile_seconds += _compile_seconds(call)
        call = replace(call, kernels=MeasuredKernels(fit.beside_bytes, fit.rounds, fit.compile_seconds))
        fit.smallest_bytes = min(call.peak_bytes, fit.smallest_bytes or call.peak_bytes)
        logger.info(
            "Inductor's kernels take %s where %s were planned (round %d, %.1f s)",
            *map(format_bytes, (call.peak_bytes, call.peak_bytes - fit.beside_bytes)),
            *(fit.rounds, fit.compile_seconds),
        )
        return call

    def wants_another(self, call: CallPlan, budget_bytes: int) -> bool:
        """Whether a call whose kernels were `measured` should be planned again.

        Raises BudgetError where no plan is left that could fit, with the least that was measured.
        """
        fit = self._fits[call.key]
        room_bytes = budget_bytes - call.peak_bytes
        if room_bytes >= 0:
            return not fit.was_above and fit.rounds < MOST_ROUNDS and _is_worth_another(call, room_bytes)
        fit.was_above = True
        if fit.rounds >= MOST_ROUNDS or _is_smallest(call):
            raise _error(fit, call, budget_bytes)
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


def _compile_seconds(call: CallPlan) -> float:
    lowered = [graph.compiled[call.key].lowered for graph in dict.fromkeys(call.graphs)]
    return sum(halves.compile_seconds for halves in lowered if halves is not None)


def _is_worth_another(call: CallPlan, room_bytes: int) -> bool:
    """Whether a faster plan of a graph that is the whole model would fit in the room that is left."""
    if len(call.planned) != 1:
        return False
    (planned,) = call.planned
    faster = planned.study.fastest(planned.peak_bytes + room_bytes)
    return faster.seconds < planned.simulation.seconds * (1 - _WORTH)


def _is_smallest(call: CallPlan) -> bool:
    return all(planned.peak_bytes <= planned.study.minimum_bytes for planned in call.planned)


def _error(fit: _Fit, call: CallPlan, budget_bytes: int) -> BudgetError:
    least = fit.smallest_bytes or call.peak_bytes
    drivers = tuple(f"{kind_words(kind)} {format_bytes(size)}" for kind, size in call.resident_bytes.items() if size)
    return BudgetError(
        f"{format_bytes(budget_bytes)} ({budget_bytes:,} bytes) is too small for compiler='inductor': of {fit.rounds} "
        f"plan(s) that were compiled, the kernels of the smallest were measured at {format_bytes(least)} "
        f"({least:,} bytes).\nWhat is there beside them: {'; '.join(drivers)}.\n"
        "What to try: compiler='eager', whose peaks are as planned; a smaller micro-batch; a larger budget.",
        least,
        drivers,
    )
