"""In how many passes over its pieces a region is run: what is made of all rows must be whole before it is read."""

from __future__ import annotations

from collections.abc import Set

from torch import fx

from graphopt.passes.joint.chunks.region import RowRegion
from graphopt.passes.joint.chunks.sums import is_weight_of_loss


def levels(graph: fx.Graph, region: RowRegion, late: Set[fx.Node]) -> dict[fx.Node, int]:
    """Node of the region -> the number of its pass, from 0; those that are `late` come in later ones than others.

    What stands outside and reads the region's results is behind a pass, and what reads that in the region is in the
    next one. The weight of all rows of a loss follows from its targets alone.
    """
    early = _levels(graph, region, late, 0)
    return _levels(graph, region, late, max((early[node] for node in region.nodes if node not in late), default=-1) + 1)


def _levels(graph: fx.Graph, region: RowRegion, late: Set[fx.Node], first_late: int) -> dict[fx.Node, int]:
    members = set(region.nodes)
    level: dict[fx.Node, int] = {}
    for node in graph.nodes:
        found = first_late if node in members and node in late else 0
        for source in node.all_input_nodes if not is_weight_of_loss(node) else ():
            is_same_pass = source not in members or (node in members and source not in region.sums)
            found = max(found, level[source] + (0 if is_same_pass else 1))
        level[node] = found
    return {node: level[node] for node in region.nodes}
