"""Outputs of a graph that others of its outputs are made of: behind a graph, as behind any of torch.compile's, they are
outputs of one function, and none leads to another. What looks at the gradient of one sees what comes from outside.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx


def positions_between(module: fx.GraphModule) -> tuple[int, ...]:
    """Positions of outputs of one of Dynamo's graphs, with a gradient, that others of its outputs are made of."""
    outputs = [node for node in module.graph.output_node().args[0] if isinstance(node, fx.Node)]  # type: ignore[union-attr]
    if len(outputs) < 2:
        return ()
    behind: set[fx.Node] = set()
    for node in reversed(module.graph.nodes):
        if node.op != "output" and any(user in behind or user in outputs for user in node.users):
            behind.add(node)
    found = module.graph.output_node().args[0]
    return tuple(i for i, node in enumerate(found) if node in behind and _has_gradient(node))  # type: ignore[arg-type]


def _has_gradient(node: fx.Node) -> bool:
    example = node.meta.get("example_value")
    return isinstance(example, torch.Tensor) and example.requires_grad and node.op != "placeholder"


@dataclass(eq=False)
class DependingOutputs:
    """Such outputs of the calls of one graph, looked at when a backward begins."""

    positions: tuple[int, ...]
    _returned: list[weakref.ref[torch.Tensor]] = field(default_factory=list)
    _told: bool = False

    def returned(self, result: Sequence[Any]) -> None:
        """A call of the graph gave this."""
        if self.positions and not self._told:
            self._returned = [weakref.ref(result[i]) for i in self.positions]

    def warn_if_watched(self) -> None:
        """Say so, once, where one has a hook or retains its gradient."""
        found = [tensor for each in self._returned if (tensor := each()) is not None]
        if self._told or not any(tensor.retains_grad or tensor._backward_hooks for tensor in found):
            return
        self._told = True
        warnings.warn(
            "graphopt: the model returned a tensor of which its other outputs are made, and it has a hook or retains "
            "its gradient. Behind a captured graph no output leads to another: that gradient lacks what comes through "
            "the other outputs, and what a hook makes of it too (docs/numerics.md, Outputs). Put the hook on the "
            "tensor inside of the model's forward, or train without a plan: model.graphopt.restore()",
            stacklevel=2,
        )
