"""Pass: what only undefined tangents reach is undefined, and is not computed.

Autograd runs the backward of what leads to the outputs that gradients came for, and nothing else. AOTAutograd
traces the backward of all outputs, and fills gradients that did not come with zeros. Without them the graph is
what eager runs: no zeros of the size of an output, and no gradient where eager leaves None.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode

from graphopt.graph.joint import JointGraph, is_tangent
from graphopt.graph.nodes import has_effect, is_view, written_arguments
from graphopt.graph.roles import SUM, UNDEFINED
from graphopt.passes.joint.sizes_from_inputs import SizeWriter
from graphopt.passes.joint.skip_clones import look_again

aten = torch.ops.aten


def undefined_tangents(joint: JointGraph, defined: Collection[int]) -> bool:
    """Let only the tangents at positions `defined` be defined; True where one is not.

    The others stay as inputs, so that the calling convention is kept. The forward is left as it is.
    """
    lost = [node for position, node in enumerate(joint.tangents) if position not in defined]
    if not lost:
        return False
    late = joint.backward_nodes()
    for node in lost:
        node.meta[UNDEFINED] = True
    drop_undefined(joint.graph, lost, late)
    joint.module.recompile()
    return True


def undefined_nodes(graph: fx.Graph, lost: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that no other tangents reach than those that are `lost`, and these."""
    dependent = _dependent(graph)
    gone = set(lost)
    for node in graph.nodes:
        if node.op == "call_function" and node in dependent and not _acts(node):
            reached = any(source not in gone for source in node.all_input_nodes if source in dependent)
            gone.update(() if reached else (node,))
    return gone


def drop_undefined(graph: fx.Graph, lost: Iterable[fx.Node], late: Collection[fx.Node]) -> None:
    """Take what is undefined without the `lost` tangents out of the graph; `late` are the nodes that may go.

    Gradients that are undefined become None. An op that reads something undefined beside something
    defined gets what eager gives it: a sum is its other term, an optional argument of a backward is
    None, anything else gets zeros.
    """
    lost = set(lost)
    gone = undefined_nodes(graph, lost)
    inputs = [node for node in graph.find_nodes(op="placeholder") if node not in lost]
    sizes = SizeWriter(graph, inputs, [node for node in inputs if isinstance(node.meta.get("val"), torch.Tensor)])
    for node in list(graph.nodes):
        read = [source for source in node.all_input_nodes if source in gone]
        if node in gone or not read:
            continue
        if node.op == "output":
            node.args = fx.node.map_arg(node.args, lambda source: None if source in gone else source)
        elif not _is_other_term(graph, node, read):
            for source in read:
                _stand_in(graph, node, source, sizes)
    _erase_dead(graph, late)


def _dependent(graph: fx.Graph) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if is_tangent(node) if node.op == "placeholder" else not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _is_other_term(graph: fx.Graph, node: fx.Node, read: list[fx.Node]) -> bool:
    """Put the defined term of a sum in the sum's place, where it is like it; False where it is not."""
    is_sum = node.target is aten.add.Tensor or node.meta.get(SUM)
    if not is_sum or node.kwargs or len(read) != 1 or len(node.all_input_nodes) != 2:
        return False
    other = next(source for source in node.all_input_nodes if source not in read)
    mine, its = node.meta["val"], other.meta["val"]
    if (its.shape, its.dtype, its.device) != (mine.shape, mine.dtype, mine.device):
        return False
    if not _same_strides(its, mine):
        if not mine.is_contiguous():
            return False
        return _becomes_copy(node, other, torch.contiguous_format)
    adds_to_it = node.meta.get(SUM) and node.args[0] is other
    if not adds_to_it and _is_written(node):
        # what stands behind it writes into the sum, and the term may be a tangent, or be read by others too
        return _becomes_copy(node, other, torch.preserve_format)
    users = list(node.users)
    node.replace_all_uses_with(other)
    graph.erase_node(node)
    look_again(users)
    return True


def _becomes_copy(node: fx.Node, other: fx.Node, layout: torch.memory_format) -> bool:
    node.target, node.args, node.kwargs = aten.clone.default, (other,), {"memory_format": layout}
    node.meta = {key: item for key, item in node.meta.items() if key != SUM}
    return True


def _is_written(node: fx.Node) -> bool:
    """Whether what stands behind it writes into its memory."""
    return any(node in written_arguments(user) or (is_view(user) and _is_written(user)) for user in node.users)


def _same_strides(a: torch.Tensor, b: torch.Tensor) -> bool:
    strides = zip(a.stride(), b.stride(), a.shape, strict=True)
    return all(mine == theirs for mine, theirs, size in strides if size > 1)


def _stand_in(graph: fx.Graph, node: fx.Node, source: fx.Node, sizes: SizeWriter) -> None:
    """Let a node read None or zeros where it reads what is undefined."""
    optional = _optional_positions(node)
    args = [None if arg is source and i in optional else arg for i, arg in enumerate(node.args)]
    node.args = tuple(args)
    if source in node.all_input_nodes:
        node.replace_input_with(source, _zeros_like(graph, node, source, sizes))


def _optional_positions(node: fx.Node) -> set[int]:
    """Arguments of a backward operator that may be None, as eager's undefined gradients are."""
    if not isinstance(node.target, torch._ops.OpOverload) or "backward" not in node.target._opname:
        return set()
    arguments = node.target._schema.arguments
    return {i for i, argument in enumerate(arguments) if isinstance(argument.type, torch.OptionalType)}


def _zeros_like(graph: fx.Graph, reader: fx.Node, source: fx.Node, sizes: SizeWriter) -> fx.Node:
    value = source.meta["val"]
    options = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
    elements = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)) if value.numel() else 0
    shape = [*map(sizes.written, value.shape if value.is_contiguous() else (elements,))]
    with graph.inserting_before(reader):
        made = _call(graph, reader, source, aten.full.default, (shape, 0), options)
        if value.is_contiguous():
            return made
        layout = (made, *([*map(sizes.written, lengths)] for lengths in (value.shape, value.stride())))
        return _call(graph, reader, source, aten.as_strided.default, layout, {})


def _call(
    graph: fx.Graph, reader: fx.Node, source: fx.Node, target: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> fx.Node:
    made = graph.create_node("call_function", target, args, options, f"{source.name}_zeros")
    given = fx.node.map_arg(args, lambda node: node.meta["val"])
    mode = detect_fake_mode([source.meta["val"]])
    assert mode is not None
    with mode:
        value = target(*given, **options)
    kept = {key: item for key, item in reader.meta.items() if key in ("stack_trace", "nn_module_stack", "seq_nr")}
    made.meta = {**kept, "val": value, "partitioner_tag": "is_backward"}
    return made


def _erase_dead(graph: fx.Graph, late: Collection[fx.Node]) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op != "call_function" or node.users or node not in late:
            continue
        if not _acts(node):
            graph.erase_node(node)


def _acts(node: fx.Node) -> bool:
    """Whether it does more than to give a result; a part of a result may be empty, and still does not."""
    return node.target is not operator.getitem and not node.meta.get(SUM) and has_effect(node)
