"""Pass: each gradient leaves the graph in a form that autograd keeps without a copy."""

from __future__ import annotations

import torch
from torch import fx

from graphopt.kernels.layout import is_dense

_library = torch.library.Library("graphopt", "FRAGMENT")
_library.define("copy_laid_out_like(Tensor gradient, Tensor parameter) -> Tensor")


def _copy_laid_out_like(gradient: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    if not is_dense(parameter):
        return gradient.clone(memory_format=torch.contiguous_format)
    return gradient.new_empty_strided(parameter.shape, parameter.stride()).copy_(gradient)


_library.impl("copy_laid_out_like", _copy_laid_out_like, "CompositeExplicitAutograd")


def own_gradients(module: fx.GraphModule, num_forward_outputs: int) -> bool:
    """Copy, inside the graph, the gradients that autograd would copy after it; True where one was.

    `AccumulateGrad` (torch/csrc/autograd/functions/accumulate_grad.h) keeps a gradient as it is only
    if nobody else holds it and it is laid out like its parameter; otherwise it clones it, after the
    graph, unseen by any plan. The same copy stands in the graph here, where its bytes are counted.
    """
    output = module.graph.output_node()
    returned = list(output.args[0])  # type: ignore[arg-type]
    primals = [node for node in module.graph.find_nodes(op="placeholder") if "tangents" not in str(node.target)]
    taken = {node for node in returned[:num_forward_outputs] if isinstance(node, fx.Node)}
    changed = False
    for position, primal in enumerate(primals, start=num_forward_outputs):
        gradient = returned[position] if position < len(returned) else None
        if not isinstance(gradient, fx.Node):
            continue
        if (
            gradient in taken
            or gradient.op == "placeholder"
            or not _keeps_layout(gradient.meta["val"], primal.meta["val"])
        ):
            returned[position] = _insert_copy(module.graph, gradient, primal)
            changed = True
        taken.add(gradient)
    if changed:
        output.args = (returned,)
        module.recompile()
    return changed


def _keeps_layout(gradient: torch.Tensor, parameter: torch.Tensor) -> bool:
    if gradient.shape != parameter.shape or gradient.layout != torch.strided:
        return True
    if not is_dense(parameter):
        return gradient.is_contiguous()
    strides = zip(gradient.stride(), parameter.stride(), parameter.shape, strict=True)
    return all(mine == theirs for mine, theirs, size in strides if size > 1)


def _insert_copy(graph: fx.Graph, gradient: fx.Node, primal: fx.Node) -> fx.Node:
    # a tangent stands before the forward; its copy belongs to the backward
    behind = gradient if gradient.op != "placeholder" else _last_forward_node(graph)
    with graph.inserting_after(behind):
        target = torch.ops.graphopt.copy_laid_out_like.default
        copy = graph.create_node("call_function", target, (gradient, primal), {}, f"{gradient.name}_copy")
    value = _copy_laid_out_like(gradient.meta["val"], primal.meta["val"])
    copy.meta = {**gradient.meta, "val": value, "partitioner_tag": "is_backward"}
    return copy


def _last_forward_node(graph: fx.Graph) -> fx.Node:
    nodes: list[fx.Node] = list(graph.nodes)
    return next(
        node
        for node in reversed(nodes)
        if node.op == "placeholder"
        or (node.op == "call_function" and node.meta.get("partitioner_tag") != "is_backward")
    )
