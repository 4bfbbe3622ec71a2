"""Forwards of a model whose backward is still to come."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction

from graphopt.device.storages import tensors_in
from graphopt.run.calls.call_plan import CallPlan
from graphopt.run.graphs.call_key import CallKey, Shapes

#: Nodes behind an output among which ours is looked for: views and copies of a graph's outputs stand in front of it.
_NEAR = 64


@dataclass(frozen=True, eq=False)
class WaitingForward:
    """A call that was run: its key and plan, and the autograd node of (one of) its graphs."""

    key: CallKey
    plan: CallPlan
    node: weakref.ref[Any]


#: Forwards of different shapes before one backward that are planned together; more are only measured.
_MOST_DIFFERENT = 16


@dataclass(eq=False)
class Pattern:
    """The shapes of the forwards that wait together for a backward: a sequence that was met once is expected again."""

    _longest: tuple[Shapes, ...] = ()
    _expected: tuple[Shapes, ...] = ()

    def met(self, shapes: Shapes, waiting: tuple[Shapes, ...]) -> tuple[Shapes, ...]:
        """A forward comes behind others that wait: the pattern that it is a part of, () where none is known."""
        now = (*waiting, shapes)
        if not waiting:
            self._expected = self._longest
        if len(now) > max(len(self._longest), 1) and (len(set(now)) == 1 or len(now) <= _MOST_DIFFERENT):
            self._longest = now
        return self._expected if now == self._expected[: len(now)] else ()


@dataclass(eq=False)
class Forwards:
    """Those that wait: their results are held, and no backward went through them."""

    _run: list[WaitingForward] = field(default_factory=list)
    _done: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)

    def waiting(self) -> list[WaitingForward]:
        """In the order in which they were run."""
        self._run = [f for f in self._run if (node := f.node()) is not None and node not in self._done]
        return list(self._run)

    def has_run(self, key: CallKey, plan: CallPlan, result: Any) -> None:
        """A call returned `result`."""
        node = _node_behind(result)
        if node is not None:
            self._run.append(WaitingForward(key, plan, weakref.ref(node)))

    def backward_runs(self) -> None:
        """Called while a graph's backward is being run."""
        node = torch._C._current_autograd_node()
        if node is not None:
            self._done.add(node)


def _node_behind(result: Any) -> Any:
    """The first node of a compiled graph among those near to the outputs."""
    queue = [tensor.grad_fn for tensor in tensors_in(result) if tensor.grad_fn is not None]
    for _ in range(_NEAR):
        if not queue:
            return None
        node = queue.pop(0)
        if isinstance(node, BackwardCFunction):
            return node
        queue.extend(following for following, _ in node.next_functions if following is not None)
    return None
