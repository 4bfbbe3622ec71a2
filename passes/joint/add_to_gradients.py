"""Pass: each gradient is added to the one that is there already, right where the backward produces it.

What a backward returns lives to its end, and autograd adds it to `.grad` after that: a second set of gradients, which
neither a plan made for a first backward nor the user expects. Added here, each new gradient is gone at once.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from graphopt.graph.joint import JointGraph
from graphopt.graph.roles import DESCRIPTOR, Accumulator, add_input

aten = torch.ops.aten


def add_to_gradients(joint: JointGraph, wanted: Iterable[int]) -> bool:
    """Add the gradients of the primals at positions `wanted` in place; True where there was one.

    Each gets a new input, `Accumulator(position)`, laid out and typed like its primal; what was returned becomes
    None. It is autograd's own operator in its own order, so the sums have eager's bits.
    """
    wanted, found, primals = set(wanted), joint.gradients, joint.primals
    summed = {position: gradient for position, gradient in found.items() if position in wanted}
    if not summed:
        return False
    joint.set_gradients({position: gradient for position, gradient in found.items() if position not in wanted})
    for position, gradient in summed.items():
        name, value = f"gradient_{primals[position].name}", torch.empty_like(primals[position].meta["val"])
        _insert_sum(joint.graph, gradient, add_input(joint.graph, name, Accumulator(position), value))
    joint.module.recompile()
    return True


def _insert_sum(graph: fx.Graph, gradient: fx.Node, there: fx.Node) -> None:
    # a tangent, which is a gradient itself where an input is returned, stands before the forward
    behind = gradient if gradient.op != "placeholder" else next(n for n in reversed(graph.nodes) if n.op != "output")
    with graph.inserting_after(behind):
        node = graph.call_function(aten.add_.Tensor, (there, gradient))
    meta = {key: item for key, item in behind.meta.items() if key not in ("val", "tensor_meta", DESCRIPTOR)}
    node.meta = {**meta, "val": there.meta["val"], "partitioner_tag": "is_backward"}
