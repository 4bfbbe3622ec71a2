"""Two steps op by op: the first op whose result differs."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from graphopt.device.storages import tensors_in
from graphopt.emit.emit import RECOMPUTED
from graphopt.emit.runnable import Runnable, observed
from graphopt.graph.nodes import is_new_statistics, source_line

#: They look at what is there, move it, or leave it unwritten: where they differ, something before them did.
_NO_COMPUTATION = {
    *("clone", "copy", "_to_copy", "detach", "alias", "lift_fresh", "contiguous", "_unsafe_view", "_reshape_alias"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize", "set", "expand_copy"),
    *("view_copy", "permute_copy", "as_strided_copy", "_conj_physical", "_local_scalar_dense"),
}


@dataclass(frozen=True)
class Entry:
    """One op's result: its node's name ("" in eager), the op, the source line, and a digest of each tensor."""

    name: str
    op: str
    source: str
    digests: tuple[Digest, ...]
    again: bool = False

    @property
    def kind(self) -> object:
        """What two entries of one op have in common."""
        return self.op, tuple(digest.shape for digest in self.digests)


@dataclass(frozen=True)
class Digest:
    """A tensor as a few numbers: its elements' sum, their sum with uneven weights, and the root of their squares'."""

    shape: tuple[int, ...]
    plain: float
    weighted: float
    norm: float

    def differs(self, other: Digest, tolerance: float) -> bool:
        """By more than `tolerance`, relative to the norm."""
        room = tolerance * max(self.norm, other.norm)
        pairs = ((self.plain, other.plain), (self.weighted, other.weighted))
        return any(not abs(a - b) <= room for a, b in pairs if not (a == b or (math.isnan(a) and math.isnan(b))))


def first_divergence(expected: Sequence[Entry], found: Sequence[Entry], tolerance: float = 0.0) -> str:
    """The first op of the second run whose result differs from the first run's by more than `tolerance`, relative.

    Where none does by so much, the first that differs at all. Two graphs are compared by their nodes' names,
    recomputations with the first run of their op; eager and a graph by the order of equal ops.
    """
    pairs = _by_order(expected, found) if any(not entry.name for entry in expected) else _by_name(expected, found)
    unequal = [(a, b) for a, b in pairs if _differ(a, b, 0.0)]
    for before, after in [pair for pair in unequal if tolerance and _differ(*pair, tolerance)] + unequal[:1]:
        how = " (recomputed)" if after.again else ""
        where = f" ({after.source or before.source})" if after.source or before.source else ""
        return f"{after.name or after.op} = {after.op}{how}{where}" if after.name else f"{after.op}{where}"
    return "no single op"


def record(run: Callable[[], object], graphs: Iterable[Runnable]) -> list[Entry]:
    """What each op of a step gives: of its `graphs` node by node, of eager, which has none, as it is dispatched."""
    log: list[Entry] = []

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


class _EagerRecorder(TorchDispatchMode):
    def __init__(self, log: list[Entry]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _computes(func):
            self.log.append(Entry("", _family(func), "", _digests(tensors_in(result))))
        return result


class _GraphRecorder(fx.Interpreter):
    """Runs an emitted graph node by node and logs every op that computes."""

    log: list[Entry]

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and _computes(n.target):
            again = RECOMPUTED in n.meta
            name = n.name.rsplit("_recomputed", 1)[0] if again else n.name
            with _disable_current_modes():
                digests = _digests(_read_results(n, result))
            self.log.append(Entry(name, _family(_op_of(n)), source_line(n), digests, again))
        return result


def _op_of(node: fx.Node) -> Any:
    """What a node computes, also where it replays the generator's state."""
    drawn = [argument for argument in node.args if isinstance(argument, torch._ops.OpOverload)]
    return drawn[0] if drawn else node.target


def _read_results(node: fx.Node, result: Any) -> list[torch.Tensor]:
    """The tensors that an op gives; where they are several, those that somebody reads: others may hold anything."""
    if isinstance(result, torch.Tensor) or not isinstance(result, (tuple, list)):
        return tensors_in(result)
    read = {user.args[1] for user in node.users if user.target is operator.getitem and not is_new_statistics(user)}
    return [tensor for i, tensor in enumerate(result) if i in read and isinstance(tensor, torch.Tensor)]


def _computes(op: Any) -> bool:
    if op is operator.getitem:
        return False
    if not isinstance(op, torch._ops.OpOverload):
        return callable(op)
    return not op.is_view and _family(op).rpartition(".")[2] not in _NO_COMPUTATION


def _differ(before: Entry, after: Entry, tolerance: float) -> bool:
    # eager gives all results of an op, and nobody knows there which of them are read
    return any(a.differs(b, tolerance) for a, b in zip(before.digests, after.digests, strict=False))


def _by_name(expected: Sequence[Entry], found: Sequence[Entry]) -> Iterator[tuple[Entry, Entry]]:
    known = {entry.name: entry for entry in expected}
    return ((known[entry.name], entry) for entry in found if entry.name in known)


def _by_order(expected: Sequence[Entry], found: Sequence[Entry]) -> Iterator[tuple[Entry, Entry]]:
    position = 0
    for entry in expected:
        match = next((i for i in range(position, len(found)) if found[i].kind == entry.kind), None)
        if match is not None:
            position = match + 1
            yield entry, found[match]


def _family(op: Any) -> str:
    """An op's name without the marks of in-place and functional variants: `add_` and `add` are one."""
    if not isinstance(op, torch._ops.OpOverload):
        return str(getattr(op, "__name__", op))
    return str(op.overloadpacket).removesuffix("_").removesuffix("_functional")


def _digests(tensors: Iterable[torch.Tensor]) -> tuple[Digest, ...]:
    return tuple(_digest(tensor.detach()) for tensor in tensors)


def _digest(tensor: torch.Tensor) -> Digest:
    numbers = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    numbers = numbers.double().contiguous().reshape(-1)  # in one order, whatever the layout
    weights = torch.arange(numbers.numel(), device=numbers.device, dtype=torch.float64).cos_()
    sums = (numbers.sum(), numbers.dot(weights), numbers.square().sum().sqrt())
    return Digest(tuple(tensor.shape), *(each.item() for each in sums))
