"""The gradients of a piece made together with its loss, in the forward: its large values are made once, and go.

A backward starts from a tangent. A training step knows it, so that its forward may read it. Elsewhere it comes when the
forward is long done: gradients are then made for a tangent of 1, as they are linear in it, and multiplied when it comes
(as Liger Kernel does: Hsu et al. 2024, arXiv:2410.10989, section 3.2). That is one rounding more, and in float16 what
is small without a loss scale would be lost: there it is not done.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphopt.graph.joint import JointGraph
from graphopt.graph.nodes import is_view
from graphopt.graph.roles import DESCRIPTOR, KnownTangent, add_input
from graphopt.graph.step_graph import tensors_of
from graphopt.passes.joint.chunks.levels import levels
from graphopt.passes.joint.chunks.linear import is_linear
from graphopt.passes.joint.chunks.ops import is_tensor, tensor
from graphopt.passes.joint.chunks.region import LARGE, RowRegion, may_be_in_pieces, with_replaced
from graphopt.passes.joint.chunks.writing import result_of

aten = torch.ops.aten


@dataclass(frozen=True)
class AtOnce:
    """How the backward of a region comes into the forward.

    `tangent` is what it starts from; `between` leads from there to the region, in order.
    """

    tangent: fx.Node
    between: tuple[fx.Node, ...]


def at_once(joint: JointGraph, region: RowRegion, *, tangent_is_known: bool) -> AtOnce | None:
    """How the backward of `region` can run in the same pass as its forward; None where it cannot."""
    tangents = joint.defined_tangents
    if len(tangents) != 1 or not is_tensor(tangents[0]) or tensor(tangents[0]).numel() != 1:
        return None
    late, members = joint.backward_nodes(), set(region.nodes)
    reached = _reached(joint, members)
    between = tuple(n for n in joint.graph.nodes if n in late and n in reached and n not in members)
    found = AtOnce(tangents[0], between)
    if not members & late or not all(_may_be_copied(node, region) for node in between):
        return None
    if set(levels(joint.graph, region, frozenset()).values()) != {0}:
        return None
    return found if tangent_is_known or _may_be_scaled(found, region, late) else None


def move_into_forward(joint: JointGraph, region: RowRegion, found: AtOnce, *, tangent_is_known: bool) -> RowRegion:
    """Let the backward of a region start from a tangent that is known in the forward."""
    copies: dict[fx.Node, fx.Node] = {found.tangent: _early_tangent(joint, found, tangent_is_known)}
    anchor = region.nodes[0]
    for node in found.between:
        with joint.graph.inserting_before(anchor):
            copies[node] = joint.graph.node_copy(node, lambda source: copies.get(source, source))
        copies[node].meta = {**node.meta, "val": result_of(copies[node], node), "partitioner_tag": "is_forward"}
    for node in region.nodes:
        node.meta["partitioner_tag"] = "is_forward"
        for source, copy in copies.items():
            node.replace_input_with(source, copy)
    return with_replaced(region, copies)


def _may_be_copied(node: fx.Node, region: RowRegion) -> bool:
    """Whether what leads to the region is small, and reads nothing of it that is not whole yet."""
    most = LARGE * tensor(region.large[0]).numel()
    is_small = is_view(node) or all(each.numel() < most for each in tensors_of(node))
    return is_small and may_be_in_pieces(node) and not set(node.all_input_nodes).intersection(region.nodes)


def _reached(joint: JointGraph, members: Set[fx.Node]) -> set[fx.Node]:
    """All that the region depends on."""
    found: set[fx.Node] = set()
    for node in reversed(joint.graph.nodes):
        if node in members or node in found:
            found.update(node.all_input_nodes)
    return found


def _may_be_scaled(found: AtOnce, region: RowRegion, late: Set[fx.Node]) -> bool:
    """Whether all that comes out of the region's backward is linear in the tangent, in a dtype with room for it."""
    dependent = {found.tangent}
    in_backward = [*found.between, *(node for node in region.nodes if node in late)]
    for node in in_backward:
        if dependent.isdisjoint(node.all_input_nodes):
            continue
        if not is_linear(node, dependent) or (is_tensor(node) and tensor(node).dtype == torch.float16):
            return False
        dependent.add(node)
    return all(node in dependent for node in in_backward if _leaves(node, region.nodes))


def _leaves(node: fx.Node, members: Iterable[fx.Node]) -> bool:
    inside = set(members)
    return node in inside and any(user not in inside for user in node.users)


def _early_tangent(joint: JointGraph, found: AtOnce, is_known: bool) -> fx.Node:
    if is_known:
        known = next((node for node in joint.added if node.meta[DESCRIPTOR] == KnownTangent()), None)
        return known or add_input(joint.graph, "known_start", KnownTangent(), torch.empty_like(tensor(found.tangent)))
    value = tensor(found.tangent)
    like = next(node for node in joint.primals if is_tensor(node) and tensor(node).device == value.device)
    kwargs: dict[str, Any] = {"dtype": value.dtype}
    behind = [*joint.graph.find_nodes(op="placeholder")][-1]
    with joint.graph.inserting_after(behind):
        one = joint.graph.call_function(aten.new_ones.default, (like, list(value.shape)), kwargs)
    one.meta = {"val": tensor(like).new_ones(list(value.shape), **kwargs), "partitioner_tag": "is_forward"}
    return one
