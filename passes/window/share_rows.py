"""Pass: each rank updates its rows of parameters that are whole on all of them, and then all have all rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from graphopt.graph.roles import DESCRIPTOR, Given, Update, with_role
from graphopt.kernels.sharding import ops

aten = torch.ops.aten


@dataclass(frozen=True)
class RowsInWindow:
    """A window whose gradients are this rank's rows, or shards, of those of the ranks of a group, by its label.

    `rows` are those of parameters that are whole, by name; the others are rows themselves. Gradients of the parameters
    `counted_elsewhere` are whole on all ranks, and another one counts them.
    """

    group: str
    rows: Mapping[str, slice] = field(default_factory=dict)
    counted_elsewhere: frozenset[str] = frozenset()


def share_rows(window: fx.GraphModule, how: RowsInWindow) -> bool:
    """Let updates write this rank's rows alone, and share them at the end; True where there is one that did not."""
    graph = window.graph
    if any(node.target is ops.share_ for node in graph.nodes):
        return False
    shared: list[fx.Node] = []
    for update in list(with_role(graph, Update)):
        params: Any = update.kwargs.get("params", ())
        parameters = [node for node in params if _name(node) in how.rows]
        for node in parameters:
            part = how.rows[_name(node)]
            with graph.inserting_before(update):
                rows = graph.call_function(aten.slice.Tensor, (node, 0, part.start, part.stop))
            update.replace_input_with(node, rows)
        shared += parameters
    if not shared:
        return False
    with graph.inserting_before(graph.output_node()):
        graph.call_function(ops.share_, (shared, how.group))
    window.recompile()
    return True


def _name(node: fx.Node) -> str:
    role = node.meta.get(DESCRIPTOR)
    return role.name if isinstance(role, Given) else ""
