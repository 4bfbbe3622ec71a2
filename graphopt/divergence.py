"""Compare a session with eager, and find the first op that differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

from graphopt import backend
from graphopt.emit import RECOMPUTED
from graphopt.errors import VerificationError
from graphopt.planned import Choice
from graphopt.session import Request, Session
from graphopt.verify import Difference, StepResult, differences, run_step, tensors_in

_EVERYTHING = 1 << 62


@dataclass(frozen=True)
class Comparison:
    """`bitwise`: equal to eager bit by bit; `lines`: what was compared, for people."""

    bitwise: bool
    lines: tuple[str, ...]


def compare_with_eager(session: Session, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Comparison:
    """Run a step optimized, captured without recomputation, and eager, from the same state.

    Optimized must equal the captured step bit by bit, and eager bit by bit wherever the captured one
    does; where capture itself changes the model's code, within `verify.TOLERANCE`. Raises
    VerificationError naming the tensor and the first diverging op.
    """
    model = session.model

    def step_of(call: Callable[..., Any]) -> Callable[[], StepResult]:
        return lambda: run_step(model, call, args, kwargs)

    optimized, eager = step_of(session)(), step_of(model._call_impl)()
    gaps = differences(eager, optimized)
    count = len(eager.tensors)
    if not gaps:
        return Comparison(
            True, (f"{count} tensors (loss, outputs, gradients, buffers, generators) equal eager's bit by bit",)
        )
    plain = Session(model, Request(_EVERYTHING, Choice("none", session.request.choice.cost_model)))
    captured = step_of(plain)()
    own_gaps = differences(captured, optimized)
    if own_gaps:
        op = first_divergence(step_of(plain), step_of(session))
        raise _error("the optimized step differs from the captured step without recomputation", own_gaps, op)
    op = first_divergence(step_of(model._call_impl), step_of(plain))
    wrong = [gap for gap in gaps if not gap.tolerable]
    if wrong:
        raise _error("capture changes the model's results by more than rounding", wrong, op)
    worst = max(gaps, key=lambda gap: gap.relative)
    return Comparison(
        False,
        (
            f"{count} tensors equal the captured step without recomputation bit by bit",
            f"{len(gaps)} of them differ from eager by rounding, before graphopt touches them: {worst.tensor} by "
            f"{worst.largest:.2g} ({worst.relative:.1g} of its largest element); first at {op}",
        ),
    )


def first_divergence(one: Callable[[], StepResult], other: Callable[[], StepResult]) -> str:
    """The first op, in the order of the first run, whose result the second run does not have."""
    expected, found = _record(one), _record(other)
    position = 0
    for name, where, sums in expected:
        match = next((i for i in range(position, len(found)) if found[i][0] == name), None)
        if match is None:
            continue
        position = match + 1
        if found[match][2] != sums:
            source = found[match][1] or where
            return f"{name}{f' ({source})' if source else ''}"
    return "no single op"


_Entry = tuple[str, str, tuple[float, ...]]


class _EagerRecorder(TorchDispatchMode):
    def __init__(self, log: list[_Entry]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(func, torch._ops.OpOverload) and not func.is_view:
            self.log.append((_family(func), "", _sums(result)))
        return result


class _GraphRecorder(fx.Interpreter):
    """Runs an emitted graph node by node and logs each op once: a recomputation has its first run's entry."""

    log: list[_Entry]

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(n.target, torch._ops.OpOverload) and not n.target.is_view and RECOMPUTED not in n.meta:
            from graphopt.capture import source_line

            with torch.utils._python_dispatch._disable_current_modes():
                self.log.append((_family(n.target), source_line(n), _sums(result)))
        return result


def _record(run: Callable[[], StepResult]) -> list[_Entry]:
    log: list[_Entry] = []
    eager: list[_Entry] = []
    with _interpreted(log):
        run()
    if not log:
        with _EagerRecorder(eager):
            run()
    return log or eager


@contextmanager
def _interpreted(log: list[_Entry]) -> Iterator[None]:
    """While open, emitted graphs run node by node and write to `log`."""

    def run(module: fx.GraphModule, args: list[Any]) -> Any:
        recorder = _GraphRecorder(module)
        recorder.log = log
        given = list(args)
        args.clear()
        return recorder.run(*given, enable_io_processing=False)

    backend.runner.append(run)
    try:
        yield
    finally:
        backend.runner.pop()


def _family(op: torch._ops.OpOverload) -> str:
    """An op's name without the marks of in-place and functional variants: `add_` and `add` are one."""
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
