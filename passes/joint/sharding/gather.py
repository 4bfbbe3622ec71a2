"""Parameters that are gathered where they are first read. To a planner that is an op like any other.

It may keep what was gathered, or drop it and gather again.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence

from torch import fx

from graphopt.graph.joint import JointGraph
from graphopt.graph.roles import PRICE
from graphopt.kernels.sharding import ops
from graphopt.kernels.sharding.message import packed_elements
from graphopt.passes.joint.sharding.half_reads import as_it_is_read
from graphopt.passes.joint.sharding.how import RowsOver
from graphopt.passes.joint.sharding.parcels import bytes_of, parcels

#: Where a node came from.
_ORIGIN = ("nn_module_stack", "stack_trace")


def gather_parameters(joint: JointGraph, wholes: Collection[fx.Node], how: RowsOver) -> None:
    """Let these primals, whole parameters as they were traced, be this rank's rows, gathered for their readers."""
    position = {node: i for i, node in enumerate(joint.graph.nodes)}
    read = [as_it_is_read(joint.graph, node, position) for node in wholes]
    late = joint.backward_nodes()
    first = {node: min(node.users, key=position.__getitem__) for node in read if node.users}
    for is_late in (False, True):
        here = [node for node in first if (first[node] in late) is is_late]
        for parcel in parcels(sorted(here, key=lambda node: position[first[node]])):
            _gather(joint.graph, parcel, first[parcel[0]], is_late, how)
    for node in {*wholes, *read}:
        node.meta["val"] = how.rows_of(node.meta["val"])


def _gather(graph: fx.Graph, parcel: Sequence[fx.Node], reader: fx.Node, is_late: bool, how: RowsOver) -> None:
    whole = [node.meta["val"] for node in parcel]
    packed_bytes = packed_elements([tensor.shape for tensor in whole]) * whole[0].itemsize
    meta: dict[str, object] = {key: reader.meta[key] for key in _ORIGIN if key in reader.meta}
    meta["partitioner_tag"] = "is_backward" if is_late else "is_forward"
    readers = {node: list(node.users) for node in parcel}
    with graph.inserting_before(reader):
        rows = [tensor.shape[0] for tensor in whole]
        made = graph.call_function(ops.gather, (list(parcel), rows, how.group))
        made.meta = {**meta, "val": whole, PRICE: (how.seconds(sum(map(bytes_of, parcel))), packed_bytes)}
        for place, node in enumerate(parcel):
            if node.op != "placeholder":  # a cast of one, which may stand further down
                made.prepend(node)
            name = f"{node.name}_gathered"
            item = graph.create_node("call_function", operator.getitem, (made, place))
            there = graph.create_node("call_function", ops.gathered, (item,), name=name)
            item.meta = there.meta = {**meta, "val": whole[place]}
            for user in readers[node]:
                user.replace_input_with(node, there)
