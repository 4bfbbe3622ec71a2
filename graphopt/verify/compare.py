"""Compare a session with eager, and find the first op that differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

from graphopt.base.errors import VerificationError
from graphopt.base.units import UNLIMITED_BYTES
from graphopt.device.storages import tensors_in
from graphopt.emit.emit import RECOMPUTED
from graphopt.emit.runnable import Runnable, observed
from graphopt.graph.nodes import is_new_statistics, source_line
from graphopt.plan.choice import Choice
from graphopt.run.request import Request
from graphopt.run.session import Session
from graphopt.verify.step_result import Difference, RecordedStep, differences, run_step


@dataclass(frozen=True)
class EagerComparison:
    """`bitwise`: equal to eager bit by bit; `lines`: what was compared, for people."""

    bitwise: bool
    lines: tuple[str, ...]


def compare_with_eager(session: Session, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> EagerComparison:
    """Run a step optimized, captured without recomputation, and eager, from the same state.

    Optimized must equal the captured step bit by bit, and eager bit by bit wherever the captured one
    does; where capture itself changes the model's code, within `verify.TOLERANCE`. Raises
    VerificationError naming the tensor and the first diverging op.
    """
    model = session.model

    def step_of(call: Callable[..., Any]) -> RecordedStep:
        return run_step(model, call, args, kwargs)

    def op_by_op(call: Callable[..., Any]) -> list[_Entry]:
        return _record(lambda: step_of(call), call.runnables if isinstance(call, Session) else ())

    optimized, eager = step_of(session), step_of(model._call_impl)
    session.forget_tangents()
    gaps = differences(eager, optimized)
    count = len(eager.tensors)
    if not gaps:
        return EagerComparison(
            True, (f"{count} tensors (loss, outputs, gradients, buffers, generators) equal eager's bit by bit",)
        )
    plain = Session(model, Request(UNLIMITED_BYTES, Choice("none", session.request.choice.cost_model)))
    captured = step_of(plain)
    own_gaps = differences(captured, optimized)
    if own_gaps:
        op = first_divergence(op_by_op(plain), op_by_op(session))
        raise _error("the optimized step differs from the captured step without recomputation", own_gaps, op)
    op = first_divergence(op_by_op(model._call_impl), op_by_op(plain))
    wrong = [gap for gap in gaps if not gap.tolerable]
    if wrong:
        raise _error("capture changes the model's results by more than rounding", wrong, op)
    worst = max(gaps, key=lambda gap: gap.relative)
    return EagerComparison(
        False,
        (
            f"{count} tensors equal the captured step without recomputation bit by bit",
            f"{len(gaps)} of them differ from eager by rounding, before graphopt touches them: {worst.tensor} by "
            f"{worst.largest:.2g} ({worst.relative:.1g} of its largest element); first at {op}",
        ),
    )


@dataclass(frozen=True)
class _Entry:
    """One op's result: its node's name ("" in eager), the op, the source line, and sums over its tensors."""

    name: str
    op: str
    source: str
    sums: tuple[float, ...]
    again: bool = False


def first_divergence(expected: Sequence[_Entry], found: Sequence[_Entry]) -> str:
    """The first op of the second run whose result the first run does not have.

    Two graphs are compared by their nodes' names, recomputations with the first run of their op; eager
    and a graph by the order of equal ops.
    """
    pairs = _by_order(expected, found) if any(not entry.name for entry in expected) else _by_name(expected, found)
    for before, after in pairs:
        if before.sums != after.sums:
            how = " (recomputed)" if after.again else ""
            where = f" ({after.source or before.source})" if after.source or before.source else ""
            return f"{after.name or after.op} = {after.op}{how}{where}" if after.name else f"{after.op}{where}"
    return "no single op"


def _by_name(expected: Sequence[_Entry], found: Sequence[_Entry]) -> Iterator[tuple[_Entry, _Entry]]:
    known = {entry.name: entry for entry in expected}
    return ((known[entry.name], entry) for entry in found if entry.name in known)


def _by_order(expected: Sequence[_Entry], found: Sequence[_Entry]) -> Iterator[tuple[_Entry, _Entry]]:
    position = 0
    for entry in expected:
        match = next((i for i in range(position, len(found)) if found[i].op == entry.op), None)
        if match is not None:
            position = match + 1
            yield entry, found[match]


class _EagerRecorder(TorchDispatchMode):
    def __init__(self, log: list[_Entry]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(func, torch._ops.OpOverload) and not func.is_view:
            self.log.append(_Entry("", _family(func), "", _sums(result)))
        return result


class _GraphRecorder(fx.Interpreter):
    """Runs an emitted graph node by node and logs every node that holds one tensor of its own."""

    log: list[_Entry]

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        is_view = isinstance(n.target, torch._ops.OpOverload) and n.target.is_view
        if n.op == "call_function" and not is_view and not is_new_statistics(n) and isinstance(result, torch.Tensor):
            again = RECOMPUTED in n.meta
            name = n.name.rsplit("_recomputed", 1)[0] if again else n.name
            with torch.utils._python_dispatch._disable_current_modes():
                self.log.append(_Entry(name, _family(n.target), source_line(n), _sums(result), again))
        return result


def _record(run: Callable[[], object], graphs: Iterable[Runnable]) -> list[_Entry]:
    """What each op of a step gives: of its `graphs` node by node, of eager, which has none, as it is dispatched."""
    log: list[_Entry] = []

    def interpreted(module: fx.GraphModule, args: list[Any]) -> Any:
        recorder = _GraphRecorder(module)
        recorder.log = log
        given = list(args)
        args.clear()
        return recorder.run(*given, enable_io_processing=False)

    with observed(graphs, interpreted):
        run()
    if not log:
        with _EagerRecorder(log):
            run()
    return log


def _family(op: Any) -> str:
    """An op's name without the marks of in-place and functional variants: `add_` and `add` are one."""
    if not isinstance(op, torch._ops.OpOverload):
        return str(getattr(op, "__name__", op))
    return str(op.overloadpacket).removesuffix("_").removesuffix("_functional")


def _sums(result: Any) -> tuple[float, ...]:
    return tuple(tensor.detach().double().sum().item() for tensor in tensors_in(result) if not tensor.is_complex())


def _error(what: str, gaps: list[Difference], op: str) -> VerificationError:
    worst = max(gaps, key=lambda gap: gap.largest)
    return VerificationError(
        f"{what}: {len(gaps)} tensors, first {gaps[0].tensor}; largest difference {worst.largest:.3g} in "
        f"{worst.tensor}. First diverging op: {op}",
        gaps[0].tensor,
        worst.largest,
    )
