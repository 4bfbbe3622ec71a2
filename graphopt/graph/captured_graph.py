"""CapturedGraph: one joint graph as it was captured, read as ops and values, and priced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from graphopt.graph.step_graph import StepGraph, with_storage_bytes
from graphopt.problem.pieces import WHOLE, Pieces
from graphopt.problem.problem import Problem, Value
from graphopt.problem.schedule import Schedule


@dataclass(frozen=True)
class WholeBackward:
    """The step with all of its tangents, beside one that has fewer; the forwards are the same, node by node.

    `kept` names the nodes of the forward that are saved for it alone, as they cannot be made again.
    """

    step: StepGraph
    kept: frozenset[str]


@dataclass(frozen=True)
class Decision:
    """How a captured graph is to run: in which form, with what of which ops moved where, and its ops in which order."""

    schedule: Schedule
    pieces: Pieces = WHOLE
    moved: tuple[int, ...] = ()
    depot: str = ""


@dataclass(frozen=True)
class Divisible:
    """In which pieces a graph can be run, and which of its values they divide.

    `shares` says, by the name of the node that makes it, how large such a value is as a share of the largest one.
    """

    pieces: Sequence[Pieces] = ()
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Forms:
    """A captured graph in pieces, each form made when it is first asked for; `find` looks for those that there are.

    `largest_bytes` are those of the largest value that may be divided.
    """

    find: Callable[[], Divisible]
    largest_bytes: int
    make: Callable[[Pieces], CapturedGraph]
    _made: dict[Pieces, CapturedGraph] = field(default_factory=dict)

    @property
    def every(self) -> Sequence[Pieces]:
        """In which pieces there is a form."""
        return self.division.pieces

    @cached_property
    def division(self) -> Divisible:
        """What pieces divide; most graphs are never asked, and looking takes some tenths of a second."""
        return self.find()

    def of(self, pieces: Pieces) -> CapturedGraph:
        """The graph in these pieces."""
        if pieces not in self._made:
            self._made[pieces] = self.make(pieces)
        return self._made[pieces]


@dataclass(frozen=True)
class TakenByOp:
    """What an op was seen to take as it ran in a step: scratch beyond what it left, all that it left, and the bytes of
    the storage of each tensor that it gave.
    """

    scratch_bytes: int
    left_bytes: int
    storage_bytes: tuple[int, ...]

    def most(self, other: TakenByOp) -> TakenByOp:
        """The most of both."""
        pairs = zip(self.storage_bytes, other.storage_bytes, strict=False)
        scratch_bytes = max(self.scratch_bytes, other.scratch_bytes)
        return TakenByOp(scratch_bytes, max(self.left_bytes, other.left_bytes), tuple(max(pair) for pair in pairs))


#: A graph that nothing divides, or that serves several sizes.
NO_FORMS = Forms(Divisible, 0, lambda _pieces: _never())


@dataclass(frozen=True)
class CapturedGraph:
    """A step graph and its problem: all that is needed to plan it.

    `break_reason` says why and where the capture ended, "" where it is the whole model. `whole` is None where the
    step has all tangents. `pieces` says in how many it runs, `forms` has it in others, all under one `graph_hash`.
    `loss_bytes` are those of a loss outside of it. What the ops `moved` make may be moved out of memory; they are
    counted as in the form without transfers (`graph/transfers.py`).
    """

    name: str
    break_reason: str
    step: StepGraph
    problem: Problem
    whole: WholeBackward | None = None
    pieces: Pieces = WHOLE
    forms: Forms = NO_FORMS
    loss_bytes: int = 0
    moved: tuple[int, ...] = ()
    #: What ops took in steps beyond what their prices say, by name: here it is counted.
    taken: Mapping[str, TakenByOp] = field(default_factory=dict)

    @property
    def captured_schedule(self) -> Schedule:
        """Every op once, in the captured order."""
        return tuple(range(len(self.problem.ops)))

    def form(self, pieces: Pieces) -> CapturedGraph:
        """The graph in these pieces, with the same loss outside of it; ops that are in both take what they took."""
        if pieces == self.pieces:
            return self
        form = with_taken(self.forms.of(pieces), self.taken)
        return with_loss_bytes(form, self.loss_bytes) if self.loss_bytes else form


def with_loss_bytes(graph: CapturedGraph, loss_bytes: int) -> CapturedGraph:
    """The graph with a loss, computed outside of it, that takes so many bytes beside what the graph holds for it.

    The gradients that come back from the loss are a part of them.
    """
    at = graph.step.boundary
    boundary = graph.problem.ops[at]
    tangent_bytes = sum(graph.problem.values[value].bytes for value in boundary.outputs)
    boundary = replace(boundary, workspace_bytes=max(loss_bytes - tangent_bytes, 0))
    ops = (*graph.problem.ops[:at], boundary, *graph.problem.ops[at + 1 :])
    return replace(graph, problem=replace(graph.problem, ops=ops), loss_bytes=loss_bytes)


def with_taken(graph: CapturedGraph, taken: Mapping[str, TakenByOp]) -> CapturedGraph:
    """The graph whose ops of these names take at least so much as they were seen to."""
    if not taken:
        return graph
    seen = [taken.get(op.name) for op in graph.step.ops]
    storages = [each.storage_bytes if each else None for each, op in zip(seen, graph.step.ops, strict=True) if op.node]
    step = with_storage_bytes(graph.step, storages)
    ops = tuple(
        replace(op, workspace_bytes=max(op.workspace_bytes, each.scratch_bytes)) if each else op
        for op, each in zip(graph.problem.ops, seen, strict=True)
    )
    values = tuple(Value(value.bytes) for value in step.values)
    return replace(graph, step=step, problem=replace(graph.problem, values=values, ops=ops), taken=taken)


def _never() -> CapturedGraph:
    raise AssertionError("a graph has no form in pieces")
