"""The regions of a joint graph that are worth running in pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import fx

from graphopt.graph.joint import JointGraph
from graphopt.passes.joint.chunks.ops import is_tensor, name_of, shape_of
from graphopt.passes.joint.chunks.region import RowRegion, find_region
from graphopt.passes.joint.chunks.rows import Rows

#: A region besides the one with the largest values has values of at least this share of theirs.
NEXT = 0.5
#: A region begins with a product of at least this share of the elements of the largest value.
LEAST_SHARE = 0.25
#: Products with which a region may begin, that are looked at, the largest first.
MOST_STARTS = 4


def find_regions(joint: JointGraph) -> list[RowRegion]:
    """Regions around the largest products of the forward, none of which has a node of another."""
    late = joint.backward_nodes()
    made = [n for n in joint.graph.nodes if n.op == "call_function" and n not in late and is_tensor(n)]
    least_numel = LEAST_SHARE * max(map(_numel, made), default=0)
    starts = [n for n in made if name_of(n) in ("mm", "addmm") and _numel(n) >= least_numel]
    starts.sort(key=_numel, reverse=True)
    found: list[RowRegion] = []
    for start in starts[:MOST_STARTS]:
        is_taken = any(start in region.nodes for region in found)
        if is_taken or (found and _numel(start) < NEXT * _numel(found[0].large[0])):
            continue
        region = _best(joint, start)
        if region is not None and not any(set(region.nodes) & set(other.nodes) for other in found):
            found.append(region)
    return found


def _best(joint: JointGraph, start: fx.Node) -> RowRegion | None:
    """The region with the most elements in large values, of those with rows of other sizes the one of more rows."""
    regions = [find_region(joint, start, rows, total) for rows, total in _ways(joint, start)]
    worth = [region for region in regions if region is not None and len(region.large) > 1]
    return max(worth, key=lambda region: (sum(map(_numel, region.large)), region.total), default=None)


def _ways(joint: JointGraph, start: fx.Node) -> Iterator[tuple[Rows, int]]:
    """What may be a row: all but the last dimension, or an element of the first, or as many as some batch has."""
    shape = shape_of(start)
    flat = math.prod(shape[:-1])
    if flat > 1:
        yield Rows(0, len(shape) - 1), flat
    first = {shape_of(node)[0] for node in joint.graph.nodes if is_tensor(node) and len(shape_of(node)) > 2}
    for total in sorted({shape[0], *first}):
        if 1 < total < flat and shape[0] % total == 0:
            yield Rows(0, 1, shape[0] // total), total


def _numel(node: fx.Node) -> int:
    return math.prod(shape_of(node))
