"""Pass: each gradient leaves the graph in a form that autograd keeps without a copy."""

from __future__ import annotations

import torch
from torch import fx

from graphopt.graph.joint import JointGraph
from graphopt.graph.roles import DESCRIPTOR
from graphopt.kernels.layout import is_dense

_library = torch.library.Library("graphopt", "FRAGMENT")
_library.define("copy_laid_out_like(Tensor gradient, Tensor parameter) -> Tensor")


def _copy_laid_out_like(gradient: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    if not is_dense(parameter):
        return gradient.clone(memory_format=torch.contiguous_format)
    return gradient.new_empty_strided(parameter.shape, parameter.stride()).copy_(gradient)


_library.impl("copy_laid_out_like", _copy_laid_out_like, "CompositeExplicitAutograd")


def own_gradients(joint: JointGraph) -> bool:
    """Copy, inside the graph, the gradients that autograd would copy after it; True where one was.

    `AccumulateGrad` (torch/csrc/autograd/functions/accumulate_grad.h) keeps a gradient as it is only
    if nobody else holds it and it is laid out like its parameter; otherwise it clones it, after the
    graph, unseen by any plan. The same copy stands in the graph here, where its bytes are counted.
    """
    found, primals = joint.gradients, joint.primals
    taken = {node for node in joint.forward_outputs if isinstance(node, fx.Node)}
    copies: dict[int, fx.Node] = {}
    for position, gradient in found.items():
        if gradient in taken or gradient.op == "placeholder" or not _keeps_layout(gradient, primals[position]):
            copies[position] = _insert_copy(joint, gradient, primals[position])
        taken.add(gradient)
    if copies:
        joint.set_gradients({**found, **copies})
        joint.module.recompile()
    return bool(copies)


def _keeps_layout(made: fx.Node, primal: fx.Node) -> bool:
    gradient, parameter = made.meta["val"], primal.meta["val"]
    if gradient.shape != parameter.shape or gradient.layout != torch.strided:
        return True
    if not is_dense(parameter):
        return bool(gradient.is_contiguous())
    strides = zip(gradient.stride(), parameter.stride(), parameter.shape, strict=True)
    return all(mine == theirs for mine, theirs, size in strides if size > 1)


def _insert_copy(joint: JointGraph, gradient: fx.Node, primal: fx.Node) -> fx.Node:
    # a tangent stands before the forward; its copy belongs to the backward
    behind = gradient if gradient.op != "placeholder" else _last_forward_node(joint)
    with joint.graph.inserting_after(behind):
        target = torch.ops.graphopt.copy_laid_out_like.default
        copy = joint.graph.create_node("call_function", target, (gradient, primal), {}, f"{gradient.name}_copy")
    value = _copy_laid_out_like(gradient.meta["val"], primal.meta["val"])
    kept = {key: item for key, item in gradient.meta.items() if key != DESCRIPTOR}
    copy.meta = {**kept, "val": value, "partitioner_tag": "is_backward"}
    return copy


def _last_forward_node(joint: JointGraph) -> fx.Node:
    late = joint.backward_nodes()
    nodes: list[fx.Node] = list(joint.graph.nodes)
    return next(n for n in reversed(nodes) if n.op in ("placeholder", "call_function") and n not in late)
