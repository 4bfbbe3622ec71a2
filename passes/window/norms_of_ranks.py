"""Pass: where each rank has its own part of the gradients, their norms are those of all ranks' parts together."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from graphopt import kernels
from graphopt.graph.roles import ROLE
from graphopt.kernels.sharding import ops
from graphopt.passes.window.share_rows import RowsInWindow

aten = torch.ops.aten


def norms_of_ranks(window: fx.GraphModule, how: RowsInWindow) -> bool:
    """Let every norm that is taken, and every finding of an overflow, be the ranks' together; True where there is one.

    No element counts twice: what all ranks have whole counts on one of them. An overflow is looked for in all.
    """
    graph = window.graph
    if any(node.target is ops.norm_of_ranks for node in graph.nodes):
        return False
    reads = [node for node in graph.nodes if node.target is kernels.gradient_norm]
    for read in reads:
        items = list(read.users)
        with graph.inserting_before(read.next):
            norm, flag = _read_here(graph, read, how.counted_elsewhere)
            both = graph.call_function(ops.norm_of_ranks, (norm, flag, read.args[1], how.group))
        for item in reversed(items):
            item.replace_input_with(read, both)
            both.append(item)
    if reads:
        window.recompile()
    return bool(reads)


def _read_here(graph: fx.Graph, read: fx.Node, elsewhere: frozenset[str]) -> tuple[fx.Node, fx.Node]:
    """The norm of what counts on this rank, and whether anything overflowed."""
    gradients: Any = read.args[0]
    p = read.args[1]
    others = [node for node in gradients if node.meta[ROLE].parameter in elsewhere]
    counted = [node for node in gradients if node not in others]
    if not others:
        return _items(graph, read)
    read.args = (others, p)
    norm, flag = _items(graph, read)
    if not counted:
        return graph.call_function(aten.zeros_like.default, (norm,)), flag
    norm, own_flag = _items(graph, graph.call_function(kernels.gradient_norm, (counted, p)))
    return norm, graph.call_function(aten.maximum.default, (flag, own_flag))


def _items(graph: fx.Graph, read: fx.Node) -> tuple[fx.Node, fx.Node]:
    norm, flag = (graph.call_function(operator.getitem, (read, place)) for place in (0, 1))
    return norm, flag
