"""Compare a session with eager, and find the first op that differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from graphopt.base.errors import VerificationError
from graphopt.base.units import UNLIMITED_BYTES
from graphopt.plan.choice import Choice
from graphopt.problem.pieces import WHOLE
from graphopt.run.model.request import Request
from graphopt.run.session import Session
from graphopt.verify.op_by_op import Entry, first_divergence, record
from graphopt.verify.rounding import REORDERED_ULPS, Settled, settle
from graphopt.verify.step_result import TOLERANCE, Difference, RecordedStep, differences, run_step


@dataclass(frozen=True)
class EagerComparison:
    """`bitwise`: equal to eager bit by bit; `lines`: what was compared, for people."""

    bitwise: bool
    lines: tuple[str, ...]


def compare_with_eager(session: Session, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> EagerComparison:
    """Run a step optimized, captured without recomputation, and eager, from the same state.

    Optimized must equal the captured step bit by bit, and eager bit by bit wherever the captured one
    does; where capture itself changes the model's code, within `step_result.TOLERANCE`, or, beyond it, within what
    `rounding.settle` takes for rounding. Of compiled kernels, which round otherwise everywhere, and of
    sums in another order, all that differs is held to that. What differs from one captured step to the next, because
    an op is not deterministic, is held to the second alone. Raises VerificationError naming the tensor and the first
    diverging op.
    """
    model = session.model

    def step_of(call: Callable[..., Any]) -> RecordedStep:
        return run_step(model, call, args, kwargs)

    def op_by_op(call: Callable[..., Any]) -> list[Entry]:
        return record(lambda: step_of(call), call.runnables if isinstance(call, Session) else ())

    optimized, eager = step_of(session), step_of(model._call_impl)
    session.forget_tangents()
    gaps = differences(eager, optimized)
    if not gaps:
        count = len(eager.tensors)
        return EagerComparison(
            True, (f"{count} tensors (loss, outputs, gradients, buffers, generators) equal eager's bit by bit",)
        )
    assert session.in_force is not None
    is_reordered = any(each.captured.pieces != WHOLE for each in session.in_force.planned)
    if session.request.choice.compiler != "eager" or is_reordered:
        return _judged_by_float64(model, args, kwargs, eager, optimized, gaps)
    plain = Session(model, Request(UNLIMITED_BYTES, Choice("none", session.request.choice.cost_model)))
    captured = step_of(plain)
    own_gaps, unsteady = differences(captured, optimized), set()
    if own_gaps:
        unsteady = {gap.tensor for gap in differences(captured, step_of(plain))}
        own_gaps = [gap for gap in own_gaps if gap.tensor not in unsteady]
    if own_gaps:
        op = first_divergence(op_by_op(plain), op_by_op(session))
        raise _error("the optimized step differs from the captured step without recomputation", own_gaps, op)
    doubtful = [gap for gap in gaps if not gap.tolerable]
    settled = settle(model, args, kwargs, eager, optimized, doubtful) if doubtful else Settled((), ())
    if settled.wrong:
        tolerance = min((TOLERANCE[gap.dtype] for gap in settled.wrong if gap.dtype in TOLERANCE), default=0.0)
        op = first_divergence(op_by_op(model._call_impl), op_by_op(session if unsteady else plain), tolerance)
        raise _error("capture changes the model's results by more than rounding", settled.wrong, op)
    op = first_divergence(op_by_op(model._call_impl), op_by_op(plain))
    return EagerComparison(False, (*_said_of(gaps, len(eager.tensors), len(unsteady), op), *settled.lines))


def _judged_by_float64(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    eager: RecordedStep,
    optimized: RecordedStep,
    gaps: Sequence[Difference],
) -> EagerComparison:
    """Every difference, however small, must be as near to float64 as eager's own."""
    settled = settle(model, args, kwargs, eager, optimized, gaps, REORDERED_ULPS)
    if settled.wrong:
        raise _error(
            "another order of sums, or another kernel, changes the model's results by more than rounding",
            settled.wrong,
            "unknown",
        )
    same = len(eager.tensors) - len(gaps)
    return EagerComparison(False, (f"{same} tensors equal eager's bit by bit", *settled.lines))


def _said_of(gaps: Sequence[Difference], count: int, unsteady: int, op: str) -> tuple[str, str]:
    worst = max((gap for gap in gaps if gap.tolerable), key=lambda gap: gap.relative, default=gaps[0])
    loose = f"; {unsteady} differ from run to run, by an op that is not deterministic" if unsteady else ""
    return (
        f"{count - unsteady} tensors equal the captured step without recomputation bit by bit{loose}",
        f"{len(gaps)} of them differ from eager by rounding, before graphopt touches them: {worst.tensor} by "
        f"{worst.largest:.2g} ({worst.relative:.1g} of its largest element); first at {op}",
    )


def _error(what: str, gaps: Sequence[Difference], op: str) -> VerificationError:
    worst = max(gaps, key=lambda gap: gap.largest)
    return VerificationError(
        f"{what}: {len(gaps)} tensors, first {gaps[0].tensor}; largest difference {worst.largest:.3g} in "
        f"{worst.tensor}. First diverging op: {op}",
        gaps[0].tensor,
        worst.largest,
    )
