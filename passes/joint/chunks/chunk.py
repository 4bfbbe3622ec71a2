"""Pass: what is independent row by row, up to a sum, is run in pieces of rows."""

from __future__ import annotations

import math

from torch import fx

from graphopt.graph.captured_graph import Divisible
from graphopt.graph.joint import JointGraph, copy_joint
from graphopt.graph.numbers import is_symbol
from graphopt.graph.step_graph import tensors_of
from graphopt.passes.joint.chunks.at_once import at_once
from graphopt.passes.joint.chunks.find import find_regions
from graphopt.passes.joint.chunks.hoist_cuts import hoist_cuts
from graphopt.passes.joint.chunks.ops import is_tensor, shape_of
from graphopt.passes.joint.chunks.region import LARGE, RowRegion, with_replaced
from graphopt.passes.joint.chunks.rewrite import rewrite
from graphopt.problem.pieces import Pieces

#: In how many pieces a graph is tried, where it has as many rows: beyond, a step has hundreds of ops more.
COUNTS = (2, 4, 8, 16, 32, 64)
#: A graph with no larger value stays whole: an op costs some microseconds, and what it saves is less than a MiB.
LEAST_NUMEL = 2**18
#: Elements of the smallest pieces that are tried, for the same reason.
LEAST_PIECE_NUMEL = 2**15


def chunk(joint: JointGraph, pieces: Pieces, *, tangent_is_known: bool = False) -> bool:
    """Run the regions of a joint graph in pieces; True where there is one.

    The region with the largest values is run in so many pieces, others in as many as make theirs no larger.
    `tangent_is_known` says that the forward may read what the backward starts from.
    """
    hoist_cuts(joint)
    regions = find_regions(joint)
    largest = max(map(_numel, regions), default=0)
    replaced: dict[fx.Node, fx.Node] = {}
    for region in regions:
        count = -(-pieces.count * _numel(region) // largest)
        if count > 1:
            region = with_replaced(region, replaced)
            found = at_once(joint, region, tangent_is_known=tangent_is_known) if pieces.at_once else None
            replaced |= rewrite(joint, region, count, found, tangent_is_known=tangent_is_known)
    if regions:
        joint.module.recompile()
    return bool(regions)


def division(joint: JointGraph, *, tangent_is_known: bool = False) -> Divisible:
    """The pieces in which a joint graph can be run, fewest first, and what they divide; none where nothing can be."""
    if any(is_symbol(size) for node in joint.graph.nodes for held in tensors_of(node) for size in held.shape):
        return Divisible()  # how many rows there are is known at each call, and pieces of them are not
    whole, joint = joint, copy_joint(joint)
    hoist_cuts(joint)
    regions = [region for region in find_regions(joint) if _numel(region) >= LEAST_NUMEL]
    if not regions:
        return Divisible()
    largest = max(map(_numel, regions))
    most = min(max(region.total for region in regions), largest // LEAST_PIECE_NUMEL)
    some = any(at_once(joint, region, tangent_is_known=tangent_is_known) for region in regions)
    ways = (True, False) if some else (False,)
    pieces = tuple(Pieces(count, way) for count in COUNTS if count <= most for way in ways)
    divided = {node.name: _numel(region) / largest for region in regions for node in region.large}
    return Divisible(pieces, divided | _cut_off(whole, joint, largest))


def _cut_off(whole: JointGraph, hoisted: JointGraph, largest: int) -> dict[str, float]:
    """What has gone from a graph where rows are cut in front of a head: large values under other names."""
    there = {node.name for node in hoisted.graph.nodes}
    gone = [node for node in whole.graph.nodes if node.name not in there and is_tensor(node)]
    shares = {node.name: math.prod(shape_of(node)) / largest for node in gone}
    return {name: share for name, share in shares.items() if share >= LARGE}


def _numel(region: RowRegion) -> int:
    return math.prod(shape_of(region.large[0]))
