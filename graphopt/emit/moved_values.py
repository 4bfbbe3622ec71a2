"""Writing transfers: what an op made goes out behind it, and comes back where a schedule fetches it."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from graphopt.emit.half import Half, WritesHalves
from graphopt.graph.step_graph import OpInfo, StepGraph, tensors_of
from graphopt.graph.transfers import fetched_values
from graphopt.kernels.offload import ops
from graphopt.problem.schedule import Schedule


@dataclass(frozen=True)
class SavedToken:
    """What a forward saves of a value that it moved out: `of` names the joint graph's node."""

    of: str
    token: fx.Node


@dataclass
class MovedValues:
    """What a schedule moves out and fetches: `fetched` are the values of each op that it fetches at least once.

    Of those `apart` nothing stands between an op and the loss of its outputs: they are waited for at once.
    """

    step: StepGraph
    depot: str
    fetched: dict[int, set[int]] = field(default_factory=dict)
    apart: set[int] = field(default_factory=set)
    #: What each fetch brings, by op in the order of its runs.
    _coming: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)
    _tokens: dict[fx.Node, fx.Node] = field(default_factory=dict)
    #: The tokens in the backward, where that is another graph.
    _handed_over: dict[fx.Node, fx.Node] = field(default_factory=dict)
    #: Ops whose outputs were waited for.
    _settled: set[int] = field(default_factory=set)
    _last: int = -1

    @classmethod
    def of(cls, step: StepGraph, schedule: Schedule, depot: str) -> MovedValues:
        """Those of a schedule."""
        found, seen = cls(step, depot), set()
        at_fetch = fetched_values(step, schedule)
        for place, op in enumerate(schedule):
            transfer = step.ops[op].transfer
            if transfer is None or not transfer.is_fetch:
                continue
            is_apart = not place or schedule[place - 1] != transfer.of
            if is_apart:
                values = at_fetch.get(place, ())
                found._coming.setdefault(op, []).append(values)
                if values:
                    found.fetched.setdefault(transfer.of, set()).update(values)
                if values and op not in seen:
                    found.apart.add(transfer.of)
            seen.add(op)
        return found

    def write(self, emitter: WritesHalves, half: Half, op_id: int) -> bool:
        """Write an op, if it is a transfer."""
        op, last, self._last = self.step.ops[op_id], self._last, op_id
        if op.transfer is None:
            return False
        if op.transfer.is_fetch and last != op.transfer.of:
            self._fetch(emitter, half, op, self._coming[op_id].pop(0))
        elif not op.transfer.is_fetch and op.transfer.of in self.fetched:
            self._settle(emitter, half, op.transfer.of)
        return True

    def passes_boundary(self) -> None:
        """The backward begins."""
        self._last = -1

    @property
    def tokens(self) -> dict[str, fx.Node]:
        """The joint graph's nodes that were moved out, by the names of their tokens."""
        return {token.name: node for node, token in self._tokens.items()}

    def made(self, emitter: WritesHalves, half: Half, op_id: int, again: bool) -> None:
        """An op was written: what it made goes out, if it is fetched later."""
        if again or op_id not in self.fetched:
            return
        for node in self._parts(op_id):
            meta = {**half.made[node].meta, "val": _fake_token(node)}
            self._tokens[node] = half.call(ops.stow, (half.made[node], self.depot), {}, token_name(node), meta)
        if op_id in self.apart:
            self._settle(emitter, half, op_id)

    def _settle(self, emitter: WritesHalves, half: Half, op_id: int) -> None:
        if op_id in self._settled:
            return
        self._settled.add(op_id)
        for node in self._parts(op_id):
            value = emitter.node(half, node)
            args = (value, self._token(emitter, half, node), self.depot)
            half.call(ops.settle, args, {}, f"{node.name}_written", {**value.meta, "val": None})

    def _fetch(self, emitter: WritesHalves, half: Half, op: OpInfo, values: tuple[int, ...]) -> None:
        assert op.transfer is not None
        if op.transfer.of in self.fetched:
            self._settle(emitter, half, op.transfer.of)
        emitter.forget(half, op)
        for node in self._parts(op.transfer.of):
            if self.step.home[node] in values:
                half.arriving[node] = fetch_from(half, node, self._token(emitter, half, node), self.depot)

    def _parts(self, op_id: int) -> list[fx.Node]:
        """The tensors of an op that are fetched at least once."""
        values = self.fetched.get(op_id, ())
        return [node for node in _parts(self.step.ops[op_id]) if self.step.home[node] in values]

    def _token(self, emitter: WritesHalves, half: Half, node: fx.Node) -> fx.Node:
        token = self._tokens[node]
        if half is emitter.forward:
            return token
        if node not in self._handed_over:
            self._handed_over[node] = emitter.placeholder(token.name, token, token.name)
        return self._handed_over[node]


def token_name(node: fx.Node) -> str:
    """What a value's token is called in the graphs, and by what it is known among what is saved."""
    return f"{node.name}_token"


def fetch_from(half: Half, node: fx.Node, token: fx.Node, depot: str) -> tuple[fx.Node, fx.Node]:
    """Write the fetch of a value; what is on its way, and its token."""
    like = node.meta["val"]
    args = (token, depot, list(like.shape), list(like.stride()), like.dtype, like.device)
    return half.call(ops.fetch, args, {}, f"{node.name}_fetched", dict(node.meta)), token


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
