"""One of a step's two graphs while it is being written, and what those who write into it ask of the emitter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import fx

from graphopt.graph.step_graph import OpInfo


@dataclass
class Half:
    """One of the two graphs while it is being written; `made` maps joint nodes to its own.

    `arriving` are those that are fetched and were not yet read, with their tokens.
    """

    graph: fx.Graph
    made: dict[fx.Node, fx.Node] = field(default_factory=dict)
    arriving: dict[fx.Node, tuple[fx.Node, fx.Node]] = field(default_factory=dict)
    states: dict[int, fx.Node] = field(default_factory=dict)

    def call(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, meta: dict[str, Any]
    ) -> fx.Node:
        """Write a call; `meta` is the new node's."""
        made = self.graph.create_node("call_function", target, args, kwargs, name)
        made.meta = meta
        return made


class WritesHalves(Protocol):
    """Writes a schedule into two halves, which may be one."""

    forward: Half

    def node(self, half: Half, node: fx.Node, /) -> fx.Node:
        """A half's own node for one of the joint graph."""

    def forget(self, half: Half, op: OpInfo, /) -> None:
        """What an earlier run of an op made is not read again."""

    def placeholder(self, name: str, saved: fx.Node, saved_as: str | int, /) -> fx.Node:
        """An input of the backward for what the forward saves."""
