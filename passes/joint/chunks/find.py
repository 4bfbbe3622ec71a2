"""The regions of a joint graph that are worth running in pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Set

from torch import fx

from graphopt.graph.joint import JointGraph
from graphopt.passes.joint.chunks.levels import levels
from graphopt.passes.joint.chunks.ops import is_tensor, name_of, shape_of
from graphopt.passes.joint.chunks.reach import ancestors, descendants
from graphopt.passes.joint.chunks.region import RowRegion, find_region
from graphopt.passes.joint.chunks.rows import Rows

#: A region begins with a product of at least this share of the elements of the largest value: in the most pieces that
#: a graph is tried in, that value's are no larger.
LEAST_SHARE = 1 / 64
#: And of so many times those of what it multiplies row by row: else that is as large, and stays whole.
WIDENS = 1.5
#: Rows beyond so many are of no use: a graph is run in no more pieces.
ENOUGH_ROWS = 64

#: Of a head and its loss no more nodes stand between forward and backward, of a block of a model the layers behind it.
MOST_BETWEEN = 250

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


def find_regions(joint: JointGraph) -> list[RowRegion]:
    """Regions around the largest products of the forward, none of which has a node of another."""
    late = joint.backward_nodes()
    made = [n for n in joint.graph.nodes if n.op == "call_function" and n not in late and is_tensor(n)]
    least_numel = LEAST_SHARE * max(map(_numel, made), default=0)
    starts = [n for n in made if name_of(n) in _PRODUCTS and _numel(n) >= max(least_numel, WIDENS * _read_numel(n))]
    starts.sort(key=_numel, reverse=True)
    found: list[RowRegion] = []
    taken: set[fx.Node] = set()
    for start in starts:
        region = _best(joint, start, late, taken) if start not in taken else None
        if region is not None:
            found.append(region)
            taken.update(region.nodes)
    return found


def _best(joint: JointGraph, start: fx.Node, late: Set[fx.Node], taken: Set[fx.Node]) -> RowRegion | None:
    """The region with the most elements in large values; of those, one with rows enough and with the fewest sums."""
    worth: list[RowRegion] = []
    for rows, total in _ways(joint, start):
        region = _found(joint, start, rows, total, late)
        if region is not None and len(region.large) > 1 and taken.isdisjoint(region.nodes):
            worth.append(region)
            if region.is_complete and total >= ENOUGH_ROWS:
                return region
    return max(
        worth,
        key=lambda r: (sum(map(_numel, r.large)), min(r.total, ENOUGH_ROWS), -len(r.sums), r.total),
        default=None,
    )


def _found(joint: JointGraph, start: fx.Node, rows: Rows, total: int, late: Set[fx.Node]) -> RowRegion | None:
    """One region of forward and backward where one pass makes both, such as a head's; else what is large of each."""
    two = find_region(joint, start, rows, total, apart=late)
    if two is None or late.isdisjoint(two.nodes) or _number_between(two, late) > MOST_BETWEEN:
        return two
    one = find_region(joint, start, rows, total)
    return one if one is not None and set(levels(joint.graph, one, frozenset()).values()) == {0} else two


def _number_between(region: RowRegion, late: Set[fx.Node]) -> int:
    """How many nodes stand between the forward and the backward of a region."""
    early = [node for node in region.nodes if node not in late]
    return len(descendants(early) & ancestors([node for node in region.nodes if node in late]))


def _ways(joint: JointGraph, start: fx.Node) -> Iterator[tuple[Rows, int]]:
    """What may be a row: all but the last dimension, or an element of the first, or as many as some batch has.

    Of a stack of products one of them, or one row of each.
    """
    shape = shape_of(start)
    if len(shape) > 2:
        for dimension in range(len(shape) - 1):
            if shape[dimension] > 1:
                yield Rows(dimension), shape[dimension]
    elif shape[0] > 1:
        yield Rows(0), shape[0]
    first = {shape_of(node)[0] for node in joint.graph.nodes if is_tensor(node) and len(shape_of(node)) > 2}
    for total in sorted({shape[0], *first}):
        if 1 < total < shape[0] and shape[0] % total == 0:
            yield Rows(0, 1, shape[0] // total), total


def _read_numel(product: fx.Node) -> int:
    left = product.args[-2]
    assert isinstance(left, fx.Node)
    return _numel(left)


def _numel(node: fx.Node) -> int:
    return math.prod(shape_of(node))
