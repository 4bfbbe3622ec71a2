"""Pass: each rank updates its rows of parameters that are whole on all of them, and then all have all rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from graphopt.graph.roles import DESCRIPTOR, OUTPUTS, ROLE, Given, Update, WindowGradient, set_outputs, with_role
from graphopt.kernels.sharding import ops

aten = torch.ops.aten


@dataclass(frozen=True)
class RowsInWindow:
    """A window that updates this rank's rows, or shards, of what the ranks of a group share out, by its label.

    `rows` are those of parameters that are whole, by name; the others are rows themselves. Gradients are rows, of sums
    over ranks, or, with `has_whole_gradients`, the sums themselves. Those of the parameters `counted_elsewhere` are
    whole on all ranks, and another one counts them.
    """

    group: str
    rows: Mapping[str, slice] = field(default_factory=dict)
    has_whole_gradients: bool = False
    counted_elsewhere: frozenset[str] = frozenset()


def share_rows(window: fx.GraphModule, how: RowsInWindow) -> bool:
    """Let updates write this rank's rows alone, and share them at the end; True where there is one that did not.

    Gradients that are whole have been read whole by then, for norms and overflows; what the window returns of them for
    an optimizer of its own are rows too, which are shared behind it.
    """
    graph = window.graph
    if any(node.target is ops.share_ or _is_rows_of_gradient(node) for node in graph.nodes):
        return False
    shared: list[fx.Node] = []
    rows_of: dict[fx.Node, fx.Node] = {}
    for update in list(with_role(graph, Update)):
        given: Mapping[str, Any] = update.kwargs
        written = [*given.get("params", ()), *given.get("copies", ())]
        parameters = [node for node in written if _name(node) in how.rows]
        gradients = given["gradients"] if how.has_whole_gradients else ()
        for node in (*parameters, *gradients):
            rows_of[node] = _rows(graph, update, node, how)
            update.replace_input_with(node, rows_of[node])
        shared += parameters
    if not rows_of:
        return False
    returned: Any = dict(zip(OUTPUTS, graph.output_node().args[0], strict=True))["gradients"]  # type: ignore[arg-type]
    set_outputs(graph, gradients=[rows_of.get(node, node) for node in returned])
    if shared:
        with graph.inserting_before(graph.output_node()):
            graph.call_function(ops.share_, (shared, how.group))
    window.recompile()
    return True


def _rows(graph: fx.Graph, update: fx.Node, node: fx.Node, how: RowsInWindow) -> fx.Node:
    """This rank's rows of a parameter, or of its gradient: a view, in front of what reads them."""
    role = node.meta.get(ROLE)
    part = how.rows[role.parameter if isinstance(role, WindowGradient) else _name(node)]
    with graph.inserting_before(update):
        rows = graph.call_function(aten.slice.Tensor, (node, 0, part.start, part.stop))
    if isinstance(role, WindowGradient):
        rows.meta[ROLE] = role
    return rows


def _is_rows_of_gradient(node: fx.Node) -> bool:
    return node.target is aten.slice.Tensor and isinstance(node.meta.get(ROLE), WindowGradient)


def _name(node: fx.Node) -> str:
    role = node.meta.get(DESCRIPTOR)
    return role.name if isinstance(role, Given) else ""
