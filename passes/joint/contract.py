"""What passes over a joint graph may rely on, and what none of them may break."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode

from graphopt.device.storages import known, storage_key
from graphopt.graph.joint import JointGraph
from graphopt.graph.nodes import is_collective
from graphopt.graph.numbers import is_constant, is_number
from graphopt.graph.roles import DESCRIPTOR, Accumulator, MicroOption
from graphopt.graph.step_graph import tensors_of
from graphopt.passes.rules import ANY_GRAPH, Still


def no_symbol_is_constant(joint: JointGraph) -> bool:
    """No node but an unused input is a symbol that is a constant."""
    return not any(_is_symbolic(node) for node in joint.graph.nodes if node.op != "placeholder" or node.users)


def gradients_are_unused(joint: JointGraph) -> bool:
    """Nothing in the graph sums gradients up, or updates parameters with them."""
    return not any(isinstance(node.meta[DESCRIPTOR], (Accumulator, MicroOption)) for node in joint.added)


def no_gradient_is_returned(joint: JointGraph) -> bool:
    """Whatever becomes of gradients becomes of them in the graph."""
    return not joint.gradients


def outputs_keep_their_places(joint: JointGraph) -> Still:
    """As many outputs as before, alike in shape and dtype; a gradient has its primal's shape, where it is returned."""
    forward, backward = [_kind(item) for item in joint.forward_outputs], joint.gradients
    count = len(joint.backward_outputs)

    def broken(_changed: bool) -> str:
        now = [_kind(item) for item in joint.forward_outputs]
        if now != forward or len(joint.backward_outputs) != count:
            return f"the forward returned {forward} and {count} gradients, now {now} and {len(joint.backward_outputs)}"
        primals = joint.primals
        wrong = [
            str(node)
            for position, node in joint.gradients.items()
            if position not in backward or _kind(node)[1:2] != _kind(primals[position])[1:2]
        ]
        return f"gradients that are not their primal's: {', '.join(wrong)}" if wrong else ""

    return broken


def values_stay_known(joint: JointGraph) -> Still:
    """A node that is there, or is new, says what it holds, unless it gives nothing."""
    silent = {node for node in joint.graph.nodes if "val" not in node.meta}

    def broken(_changed: bool) -> str:
        lost = [
            str(node)
            for node in joint.graph.nodes
            if "val" not in node.meta and node not in silent and not _gives_nothing(node)
        ]
        return f"nodes that do not say what they hold: {', '.join(lost)}" if lost else ""

    return broken


def values_are_true(joint: JointGraph) -> Still:
    """What a new or edited node says it holds is what its op gives: shape, strides, dtype, device, and whose storage.

    Planners count bytes by it.
    """
    before = {node: _reading(node) for node in joint.graph.nodes}

    def broken(_changed: bool) -> str:
        edited = [
            node
            for node in joint.graph.nodes
            if node.op == "call_function" and tensors_of(node) and not is_collective(node)
            if node not in before or not _same(before[node], _reading(node))
        ]
        wrong = [what for what in map(_untruth, edited) if what]
        return f"nodes hold other than they say: {'; '.join(wrong)}" if wrong else ""

    return broken


def halves_stay_apart(joint: JointGraph) -> Still:
    """The forward returns nothing that the backward makes, and every node stays in its half."""
    before, nodes = joint.backward_nodes(), set(joint.graph.nodes)

    def broken(_changed: bool) -> str:
        late = joint.backward_nodes()
        early = [str(item) for item in joint.forward_outputs if isinstance(item, fx.Node) and item in late]
        moved = [str(n) for n in joint.graph.nodes if n in nodes and (n in late) is not (n in before)]
        tagged = [str(node) for node in late if node.meta.get("partitioner_tag") == "is_forward"]
        if early or moved or tagged:
            return f"the forward returns the backward's {early}, {moved} changed halves, {tagged} read the backward's"
        return ""

    return broken


RULES = (
    *ANY_GRAPH,
    outputs_keep_their_places,
    values_stay_known,
    values_are_true,
    halves_stay_apart,
)


def _is_symbolic(node: fx.Node) -> bool:
    """Whether it is a symbol that is a constant."""
    return is_number(node) and is_constant(node.meta["val"])


def _kind(item: object) -> tuple[object, ...]:
    """What an output is, but for its layout."""
    value = item.meta.get("val") if isinstance(item, fx.Node) else item
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(value.shape))
    return (value,)


def _gives_nothing(node: fx.Node) -> bool:
    return node.op == "output" or (isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.returns)


def _reading(node: fx.Node) -> tuple[Any, ...]:
    return (node.target, node.args, node.kwargs, [source.meta.get("val") for source in node.all_input_nodes])


def _same(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return before[:3] == after[:3] and all(map(lambda a, b: a is b, before[3], after[3]))


def _untruth(node: fx.Node) -> str:
    """What is wrong with what a node says that it holds, or ""."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    given = [tensor for source in node.all_input_nodes for tensor in tensors_of(source)]
    mode = detect_fake_mode([*given, *tensors_of(node)])
    assert mode is not None
    with mode:
        made = node.target(*args, **kwargs)  # type: ignore[operator]
    found = [tensor for tensor in torch.utils._pytree.tree_leaves(made) if isinstance(tensor, torch.Tensor)]
    said, is_ = [_layout(tensor, given) for tensor in tensors_of(node)], [_layout(tensor, given) for tensor in found]
    return "" if said == is_ else f"{node} says {said}, and it is {is_}"


def _layout(tensor: torch.Tensor, given: list[torch.Tensor]) -> tuple[object, ...]:
    shape, steps = tuple(map(known, tensor.shape)), map(known, tensor.stride())
    strides = [step for step, size in zip(steps, shape, strict=True) if size > 1]
    seen = [i for i, source in enumerate(given) if storage_key(source) == storage_key(tensor)]
    return shape, strides if 0 not in shape else [], tensor.dtype, str(tensor.device), seen
