"""Pass: what is independent row by row, up to a sum, is run in pieces of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graphopt.graph.joint import JointGraph, copy_joint
from graphopt.graph.numbers import is_symbol
from graphopt.graph.step_graph import tensors_of
from graphopt.passes.joint.chunks.at_once import at_once
from graphopt.passes.joint.chunks.find import find_regions
from graphopt.passes.joint.chunks.hoist_cuts import hoist_cuts
from graphopt.passes.joint.chunks.ops import shape_of
from graphopt.passes.joint.chunks.rewrite import rewrite
from graphopt.problem.pieces import Pieces

#: In how many pieces a graph is tried, where it has as many rows: beyond, a step has hundreds of ops more.
COUNTS = (2, 4, 8, 16, 32, 64)
#: A graph with no larger value stays whole: an op costs some microseconds, and what it saves is less than a MiB.
LEAST_NUMEL = 2**18


def chunk(joint: JointGraph, pieces: Pieces, *, tangent_is_known: bool = False) -> bool:
    """Run the regions of a joint graph in so many pieces each; True where there is one.

    `tangent_is_known` says that the forward may read what the backward starts from.
    """
    hoist_cuts(joint)
    regions = find_regions(joint)
    for region in regions:
        found = at_once(joint, region, tangent_is_known=tangent_is_known) if pieces.at_once else None
        rewrite(joint, region, pieces.count, found, tangent_is_known=tangent_is_known)
    if regions:
        joint.module.recompile()
    return bool(regions)


def possible_pieces(joint: JointGraph, *, tangent_is_known: bool = False) -> Sequence[Pieces]:
    """The pieces in which a joint graph can be run, fewest first; none where nothing in it is independent by row."""
    if any(is_symbol(size) for node in joint.graph.nodes for held in tensors_of(node) for size in held.shape):
        return ()  # how many rows there are is known at each call, and pieces of them are not
    joint = copy_joint(joint)
    hoist_cuts(joint)
    regions = [r for r in find_regions(joint) if math.prod(shape_of(r.large[0])) >= LEAST_NUMEL]
    most = max((region.total for region in regions), default=0)
    some = any(at_once(joint, region, tangent_is_known=tangent_is_known) for region in regions)
    return tuple(
        Pieces(count, way) for count in COUNTS if count <= most for way in ((True, False) if some else (False,))
    )
