"""Pass: where each rank has its own rows of the gradients, their norms are those of all ranks' rows together."""

from __future__ import annotations

import operator

from torch import fx

from graphopt import kernels
from graphopt.kernels.sharding import ops


def norms_of_ranks(window: fx.GraphModule, group: str) -> bool:
    """Let every norm that is taken, and every finding of an overflow, be the ranks' together; True where there is one.

    Rows of parameters are each on one rank, so that no element counts twice.
    """
    graph = window.graph
    reads = [node for node in graph.nodes if node.target is kernels.gradient_norm and not _is_shared(node)]
    for read in reads:
        items = list(read.users)
        with graph.inserting_before(read.next):
            mine = [graph.call_function(operator.getitem, (read, place)) for place in (0, 1)]
            both = graph.call_function(ops.norm_of_ranks, (*mine, read.args[1], group))
        for item in reversed(items):
            item.replace_input_with(read, both)
            both.append(item)
    if reads:
        window.recompile()
    return bool(reads)


def _is_shared(read: fx.Node) -> bool:
    return any(reader.target is ops.norm_of_ranks for item in read.users for reader in item.users)
