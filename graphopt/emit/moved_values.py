"""Writing transfers: what an op made goes out behind it, and comes back where a schedule fetches it."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from graphopt.graph.step_graph import OpInfo, StepGraph, tensors_of
from graphopt.kernels.offload import ops
from graphopt.problem.schedule import Schedule

if TYPE_CHECKING:
    from graphopt.emit.emit import Emitter, Half


@dataclass
class MovedValues:
    """What a schedule moves out and fetches: `fetched` are the ops whose outputs it fetches at least once.

    Of those `apart` nothing stands between an op and the loss of its outputs: they are waited for at once.
    """

    step: StepGraph
    depot: str
    fetched: set[int] = field(default_factory=set)
    apart: set[int] = field(default_factory=set)
    _tokens: dict[fx.Node, fx.Node] = field(default_factory=dict)
    #: The tokens in the backward, where that is another graph.
    _handed_over: dict[fx.Node, fx.Node] = field(default_factory=dict)
    _last: int = -1

    @classmethod
    def of(cls, step: StepGraph, schedule: Schedule, depot: str) -> MovedValues:
        """Those of a schedule."""
        found, seen = cls(step, depot), set()
        for position, op in enumerate(schedule):
            transfer = step.ops[op].transfer
            if transfer is None or not transfer.is_fetch:
                continue
            if schedule[position - 1] != transfer.of:
                found.fetched.add(transfer.of)
                if op not in seen:
                    found.apart.add(transfer.of)
            seen.add(op)
        return found

    def write(self, emitter: Emitter, half: Half, op_id: int) -> bool:
        """Write an op, if it is a transfer."""
        op, last, self._last = self.step.ops[op_id], self._last, op_id
        if op.transfer is None:
            return False
        if op.transfer.of not in self.fetched:
            return True
        if not op.transfer.is_fetch:
            self._settle(emitter, half, op.transfer.of)
        elif last != op.transfer.of:
            self._fetch(emitter, half, op)
        return True

    def made(self, emitter: Emitter, half: Half, op_id: int, again: bool) -> None:
        """An op was written: what it made goes out, if it is fetched later."""
        if again or op_id not in self.fetched:
            return
        for node in _parts(self.step.ops[op_id]):
            meta = {**half.made[node].meta, "val": _fake_token(node)}
            self._tokens[node] = half.call(ops.stow, (half.made[node], self.depot), {}, f"{node.name}_token", meta)
        if op_id in self.apart:
            self._settle(emitter, half, op_id)

    def _settle(self, emitter: Emitter, half: Half, op_id: int) -> None:
        for node in _parts(self.step.ops[op_id]):
            value = emitter.node(half, node)
            args = (value, self._token(emitter, half, node), self.depot)
            half.call(ops.settle, args, {}, f"{node.name}_written", {**value.meta, "val": None})

    def _fetch(self, emitter: Emitter, half: Half, op: OpInfo) -> None:
        assert op.transfer is not None
        emitter.forget(half, op)
        for node in _parts(self.step.ops[op.transfer.of]):
            token, like = self._token(emitter, half, node), node.meta["val"]
            args = (token, self.depot, list(like.shape), list(like.stride()), like.dtype, like.device)
            value = half.call(ops.fetch, args, {}, f"{node.name}_fetched", dict(node.meta))
            half.arriving[node] = (value, token)

    def _token(self, emitter: Emitter, half: Half, node: fx.Node) -> fx.Node:
        token = self._tokens[node]
        if half is emitter.forward:
            return token
        if node not in self._handed_over:
            self._handed_over[node] = emitter.placeholder(token.name, token, token.name)
        return self._handed_over[node]


def arrive(half: Half, node: fx.Node) -> fx.Node:
    """A value that is on its way is read: it is waited for here."""
    value, token = half.arriving.pop(node)
    return half.call(ops.arrived, (value, token), {}, f"{node.name}_arrived", dict(node.meta))


def _parts(op: OpInfo) -> list[fx.Node]:
    """The tensors that an op returns and that anybody reads."""
    assert op.node is not None
    if isinstance(op.node.meta.get("val"), torch.Tensor):
        return [op.node]
    parts: list[Any] = [user for user in op.node.users if user.target is operator.getitem]
    return [part for part in parts if isinstance(part.meta.get("val"), torch.Tensor)]


def _fake_token(node: fx.Node) -> torch.Tensor:
    with tensors_of(node)[0].fake_mode:  # type: ignore[attr-defined]
        return torch.empty(1, dtype=torch.int64)
