"""A joint graph as Inductor would partition it: decomposed, cleaned by its passes, with its own recomputation in it.

Inductor fuses what it can, so recomputing a pointwise op next to its reader is free, and a plan should begin where
torch.compile's own ends. Torch's min-cut partitioner decides what is free, and what it recomputes stands in the
backward of the joint graph that is planned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import detect_fake_mode
from torch._inductor import compile_fx, config
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.virtualized import V
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils.checkpoint import CheckpointPolicy

from graphopt.graph.joint import JointGraph, is_tangent
from graphopt.graph.nodes import is_random
from graphopt.graph.roles import DESCRIPTOR
from graphopt.lower.channels_last import turn_convolutions
from graphopt.passes.joint.split_dropout import split_dropout

_TAG, _BACKWARD = "partitioner_tag", "is_backward"


def decompositions() -> dict[Any, Any]:
    """Those that Inductor lowers from; random ops stay whole, so that draws are eager's."""
    with config.patch(fallback_random=True):
        return dict(select_decomp_table())


def as_inductor_partitions(joint: JointGraph, inputs: Any, static_inputs: list[int]) -> JointGraph:
    """The graph after Inductor's joint passes and torch's min-cut, joined again.

    Nodes of the forward keep their order and come first; what min-cut recomputes stands in the backward, tagged so.
    """
    _keep_draws(joint)
    mode = _fake_mode(joint.module)
    device = next(tensor.device for node in joint.graph.nodes if (tensor := _tensor(node)) is not None)
    with V.set_fake_mode(mode):
        module = compile_fx._recursive_joint_graph_passes(joint.module, skip_invoke_subgraph=True, input_device=device)
        turn_convolutions(module, mode)
        halves = min_cut_rematerialization_partition(
            module,
            inputs,
            compiler="inductor",
            num_fwd_outputs=joint.num_forward_outputs,
            static_lifetime_input_indices=static_inputs,
        )
    joined = JointGraph(_joined(*halves, joint.num_forward_outputs, mode), joint.num_forward_outputs)
    split_dropout(joined)
    _open_dropout(joined.graph)
    return joined


def _keep_draws(joint: JointGraph) -> None:
    """The partitioner knows PyTorch's own random ops alone, and would run a user's a second time."""
    late = joint.backward_nodes()
    for node in joint.graph.nodes:
        if node not in late and is_random(node) and node.target.namespace not in ("aten", "prims"):
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE


def _open_dropout(graph: fx.Graph) -> None:
    """Write the product with a dropout's mask as two products, which Inductor fuses; the draw stays an op."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.graphopt.apply_dropout_mask.default):
        source, mask, chance = node.args
        scale = 0.0 if chance == 1.0 else 1.0 / (1.0 - chance)
        with graph.inserting_before(node):
            kept = graph.call_function(torch.ops.aten.mul.Tensor, (source, mask))
            made = graph.call_function(torch.ops.aten.mul.Tensor, (kept, scale))
        kept.meta, made.meta = dict(node.meta), dict(node.meta)
        node.replace_all_uses_with(made)
        graph.erase_node(node)


def _joined(forward: fx.GraphModule, backward: fx.GraphModule, num_outputs: int, mode: Any) -> fx.GraphModule:
    """One graph of both halves: the backward reads what the forward saved for it."""
    graph = fx.Graph()
    inputs, late_inputs = (half.graph.find_nodes(op="placeholder") for half in (forward, backward))
    outputs, gradients = ((half.graph.output_node().args[0]) for half in (forward, backward))
    saved: Any = outputs[num_outputs:]  # type: ignore[index]
    tangents = [node for node in late_inputs if is_tangent(node)]
    made = {node: graph.node_copy(node) for node in (*inputs, *tangents)}
    _copy_ops(forward.graph, graph, made, is_backward=False)
    made |= {late: made[node] for late, node in _handed_over(saved, [n for n in late_inputs if n not in made])}
    _copy_ops(backward.graph, graph, made, is_backward=True)
    returned = [made.get(item, item) for item in (*outputs[:num_outputs], *gradients)]  # type: ignore[index, misc]
    output = graph.output(tuple(returned))
    output.meta = dict(forward.graph.output_node().meta)
    output.meta[DESCRIPTOR] = [
        *forward.graph.output_node().meta.get(DESCRIPTOR, ())[:num_outputs],
        *backward.graph.output_node().meta.get(DESCRIPTOR, ()),
    ]
    root = {name: value for half in (backward, forward) for name, value in _constants(half).items()}
    module = fx.GraphModule(root, graph)
    _make_anew(module, mode)
    return module


def _handed_over(saved: Sequence[fx.Node], taken: Sequence[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What a backward takes with what was saved for it: names stay, but those of generator states; these are in order.

    Numbers are saved behind tensors, and taken in front of them.
    """
    named = {node.name: node for node in saved}
    names = {node.name for node in taken}
    others = iter([node for node in saved if node.name not in names])
    for node in taken:
        yield node, named[node.name] if node.name in named else next(others)


def _copy_ops(source: fx.Graph, graph: fx.Graph, made: dict[fx.Node, fx.Node], *, is_backward: bool) -> None:
    for node in source.nodes:
        if node.op in ("call_function", "get_attr"):
            made[node] = graph.node_copy(node, made.__getitem__)
            made[node].meta = {key: value for key, value in node.meta.items() if key != _TAG}
            if is_backward:
                made[node].meta[_TAG] = _BACKWARD


def _constants(half: fx.GraphModule) -> dict[str, Any]:
    found = {}
    for node in half.graph.find_nodes(op="get_attr"):
        value: Any = half
        for part in str(node.target).split("."):
            value = getattr(value, part)
        found[str(node.target)] = value
    return found


def _make_anew(module: fx.GraphModule, mode: Any) -> None:
    """Fake tensors of its own for every node: a copy in the backward must not seem to share its original's storage."""
    inputs = module.graph.find_nodes(op="placeholder")
    kept = [node.meta.get("val") for node in inputs]
    # an op that saves the generator's state saves the real one
    with torch.no_grad(), mock.patch.object(mode, "allow_non_fake_inputs", True):
        FakeTensorProp(module, mode).propagate_dont_convert_inputs(*kept)
    for node, value in zip(inputs, kept, strict=True):
        node.meta["val"] = value
    module.graph.lint()


def _fake_mode(module: fx.GraphModule) -> Any:
    values = [tensor for node in module.graph.nodes if (tensor := _tensor(node)) is not None]
    return detect_fake_mode(values)


def _tensor(node: fx.Node) -> torch.Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None
