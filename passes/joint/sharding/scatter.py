"""Gradients that are summed over ranks as soon as they are there, each rank's rows on that rank."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode

from graphopt.compression import row_ops
from graphopt.device.storages import storage_key
from graphopt.graph.joint import JointGraph
from graphopt.graph.nodes import is_view
from graphopt.graph.roles import DESCRIPTOR, PRICE, RUN_ONCE
from graphopt.graph.step_graph import tensors_of
from graphopt.kernels.sharding import ops
from graphopt.kernels.sharding.message import packed_elements
from graphopt.passes.joint.sharding.compressed import CompressedWriter
from graphopt.passes.joint.sharding.how import CompressedRows, RowsOver
from graphopt.passes.joint.sharding.parcels import bytes_of, parcels

aten = torch.ops.aten


def scatter_gradients(
    joint: JointGraph, gradients: Mapping[int, fx.Node], how: RowsOver, compressed: CompressedRows | None = None
) -> dict[int, fx.Node]:
    """The rows of the sums over ranks of these gradients, by the position of their primal.

    A gradient is waited for right behind the next one that is sent, so that it travels while that is computed, where
    the two take no more than the largest alone. One is overwritten while it travels: it is copied first where anything
    else reads its memory.
    """
    graph, memory = joint.graph, _by_storage(joint.graph)
    own = {at: node if _is_own(joint, node, memory) else _copy(graph, node) for at, node in gradients.items()}
    order = {node: i for i, node in enumerate(graph.nodes)}
    place = {node: at for at, node in own.items()}
    writer = CompressedWriter(joint, how, compressed, place) if compressed else None
    made = parcels(sorted(place, key=order.__getitem__), writer.method_of if writer else lambda _: None)
    made.sort(key=lambda parcel: order[parcel[-1]])
    most_bytes = max((sum(map(bytes_of, parcel)) for parcel in made), default=0)
    rows: dict[int, fx.Node] = {}
    waiting: _Sent | None = None
    for parcel in made:
        sent = _begin(graph, parcel, how, writer)
        if waiting is not None:
            together = waiting.held_bytes + sum(map(bytes_of, parcel))
            behind = sent if together <= most_bytes else waiting
            rows |= _end(graph, waiting, behind.node, place, how, writer)
        waiting = sent
    if waiting is not None:
        rows |= _end(graph, waiting, waiting.node, place, how, writer)
    return rows


@dataclass(frozen=True)
class _Sent:
    """Gradients that are on their way, the node that sent them, and the bytes that they hold meanwhile."""

    parcel: Sequence[fx.Node]
    node: fx.Node
    held_bytes: int


def _begin(graph: fx.Graph, parcel: Sequence[fx.Node], how: RowsOver, writer: CompressedWriter | None) -> _Sent:
    meta = _meta(parcel[-1])
    if writer is not None and writer.method_of(parcel[0]) is not None:
        node = writer.begin(parcel, meta)
        return _Sent(parcel, node, bytes_of(node))
    with graph.inserting_after(parcel[-1]):
        node = graph.call_function(ops.begin_scatter_, (list(parcel), how.group))
    whole_bytes = sum(map(bytes_of, parcel))
    node.meta = {**meta, "val": None, PRICE: (how.seconds(whole_bytes), 0)}
    return _Sent(parcel, node, whole_bytes)


def _end(
    graph: fx.Graph,
    sent: _Sent,
    behind: fx.Node,
    place: Mapping[fx.Node, int],
    how: RowsOver,
    writer: CompressedWriter | None,
) -> dict[int, fx.Node]:
    parcel = sent.parcel
    meta = _meta(parcel[-1])
    if writer is not None and sent.node.target is row_ops.begin_exchange_:
        node = writer.end(parcel, sent.node, behind, meta)
    else:
        node = _end_scatter(graph, parcel, behind, meta, how)
    rows: dict[int, fx.Node] = {}
    last = node
    for number, gradient in enumerate(parcel):
        with graph.inserting_after(last):
            last = graph.call_function(operator.getitem, (node, number))
        last.meta = {**meta, "val": node.meta["val"][number]}
        rows[place[gradient]] = last
    if writer is not None and node.target is ops.end_scatter:
        writer.look_at(list(rows.values()), meta)
    return rows


def _end_scatter(
    graph: fx.Graph, parcel: Sequence[fx.Node], behind: fx.Node, meta: Mapping[str, Any], how: RowsOver
) -> fx.Node:
    whole = [node.meta["val"] for node in parcel]
    packed_bytes = packed_elements([tensor.shape for tensor in whole]) * whole[0].itemsize
    with graph.inserting_after(behind):
        node = graph.call_function(ops.end_scatter, (list(parcel), how.group, how.copies, how.world))
    rows_bytes = sum(map(bytes_of, parcel)) // how.world
    seconds = how.seconds(rows_bytes) if how.copies else 0.0
    node.meta = {**meta, "val": [how.rows_of(tensor) for tensor in whole], PRICE: (seconds, packed_bytes)}
    return node


def _by_storage(graph: fx.Graph) -> dict[int, set[fx.Node]]:
    """The nodes that hold each storage."""
    found: dict[int, set[fx.Node]] = {}
    for node in graph.nodes:
        for tensor in tensors_of(node):
            found.setdefault(storage_key(tensor), set()).add(node)
    return found


def _is_own(joint: JointGraph, gradient: fx.Node, memory: Mapping[int, set[fx.Node]]) -> bool:
    """Whether a gradient's memory is its own, dense, and read by nothing else: in it the sum is made."""
    value = gradient.meta["val"]
    if not value.is_contiguous() or value.numel() * value.itemsize != value.untyped_storage().nbytes():
        return False
    holders = memory[storage_key(value)]
    returned = [node for node in joint.outputs if isinstance(node, fx.Node) and node in holders]
    if any(node.op != "call_function" for node in holders) or returned != [gradient]:
        return False
    readers = {user for node in holders for user in node.users if user.op != "output"}
    return all(user in holders and is_view(user) for user in readers)


def _copy(graph: fx.Graph, gradient: fx.Node) -> fx.Node:
    """A copy of its own; a gradient may be an input (a tangent), which stands before the forward."""
    at_end = gradient.op == "placeholder"
    with graph.inserting_before(graph.output_node()) if at_end else graph.inserting_after(gradient):
        made = graph.call_function(aten.clone.default, (gradient,), {"memory_format": torch.contiguous_format})
    mode = detect_fake_mode([gradient.meta["val"]])
    assert mode is not None
    with mode:
        value = gradient.meta["val"].clone(memory_format=torch.contiguous_format)
    made.meta = {**_meta(gradient), "val": value}
    made.meta.pop(RUN_ONCE)
    return made


def _meta(behind: fx.Node) -> dict[str, Any]:
    """Nothing that is sent runs again."""
    kept = {key: value for key, value in behind.meta.items() if key not in ("val", "tensor_meta", DESCRIPTOR)}
    return {**kept, "partitioner_tag": "is_backward", RUN_ONCE: True}
