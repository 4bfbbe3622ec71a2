"""The micro-batches of a step, planned, and planned again where their compiled kernels take more than the plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx

from graphopt.base.errors import BudgetError
from graphopt.base.units import format_bytes
from graphopt.lower.compiler import MOST_ROUNDS
from graphopt.step.memory import StepMemory
from graphopt.step.micro_batches.micro_graph import Micro
from graphopt.step.step_watch import StepWatch


def plan_micros(
    micros: Sequence[Micro],
    memory: StepMemory,
    watch: StepWatch,
    forget_plans: Callable[[], None],
    *may_change: Callable[[], bool],
) -> bool:
    """Plan those that have no plan; where nothing fits beside what was measured, one step is tried without that.

    False where nothing fits and one of `may_change` changed what the graphs do: others stand for them now.
    Raises BudgetError.
    """
    refused = _refused(micros)
    if refused is not None:
        if not watch.may_try:
            if any(changes() for changes in may_change):
                return False
            raise refused
        watch.tries_without()
        refused = _refused(micros)
        if refused is not None:
            raise refused
    _fit_kernels(micros, memory, forget_plans)
    return True


def _refused(micros: Sequence[Micro]) -> BudgetError | None:
    """Plan each; of those that do not fit, the error of the one that needs most, so that what it names is enough."""
    found: list[BudgetError] = []
    for micro in dict.fromkeys(micros):
        try:
            assert micro.planned
        except BudgetError as error:
            found.append(error)
    return max(found, key=lambda error: error.minimum_bytes, default=None)


def _fit_kernels(micros: Sequence[Micro], memory: StepMemory, forget_plans: Callable[[], None]) -> None:
    """Compile planned micro-batches, and plan them again while what their kernels were measured to take is too much."""
    distinct = list(dict.fromkeys(micros))
    for round_number in range(MOST_ROUNDS):
        peak_bytes = max((_peak_bytes(micro, memory) for micro in distinct), default=0)
        excess_bytes = peak_bytes - memory.budget_bytes
        if excess_bytes <= 0:
            return
        if round_number == MOST_ROUNDS - 1:
            break
        memory.above_bytes += max(_beside_bytes(micro) for micro in distinct)
        forget_plans()
        if _refused(distinct) is not None:
            break
    raise BudgetError(
        f"{format_bytes(memory.budget_bytes)} ({memory.budget_bytes:,} bytes) is too small for compiler='inductor': "
        f"kernels of the last plan that was compiled were measured at {format_bytes(peak_bytes)} ({peak_bytes:,} "
        "bytes). What to try: compiler='eager', whose peaks are as planned; smaller micro-batches; a larger budget.",
        peak_bytes,
    )


def _peak_bytes(micro: Micro, memory: StepMemory) -> int:
    """The most in the step with this micro-batch's kernels; 0 where eager's run, or nothing can be measured."""
    measured = _measured_bytes(micro)
    (planned,) = memory.plans_of([micro])
    own = planned.resident_bytes
    return 0 if measured is None else sum(own.values()) - memory.above_bytes + measured


def _beside_bytes(micro: Micro) -> int:
    measured = _measured_bytes(micro)
    return 0 if measured is None else measured - micro.planned.peak_bytes


def _measured_bytes(micro: Micro) -> int | None:
    return None if isinstance(micro.module, fx.GraphModule) else micro.module.peak_bytes
