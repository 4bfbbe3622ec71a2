"""Effect tokens, with which AOTAutograd keeps ops with effects in order: `print`, checks of linear algebra, custom ops.

An op with effects is traced as `with_effects(token, op, ...)`, and tokens are the first inputs and outputs of the
forward, and the last ones of the backward; at run time all are None. Schedules keep such ops in order without them: so
they are taken out of the joint graph, and put back into what is emitted, where AOTAutograd counts on them.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._functorch._aot_autograd.descriptors import BackwardTokenAOTInput, ForwardTokenAOTInput

from graphopt.graph.joint import JointGraph, is_tangent
from graphopt.graph.roles import DESCRIPTOR, EFFECT


@dataclass(frozen=True)
class Tokens:
    """How many tokens the forward and the backward of a graph take and return."""

    forward: int
    backward: int

    def put_back(self, forward: fx.GraphModule, *backwards: fx.GraphModule | None) -> None:
        """Let emitted graphs take tokens, and return them as they come."""
        if self.forward:
            _put(forward, self.forward, next(iter(forward.graph.nodes)), in_front=True)
        for module in backwards:
            if self.backward and module is not None:
                inputs = module.graph.find_nodes(op="placeholder")
                behind = [node for node in inputs if is_tangent(node)][-1]
                _put(module, self.backward, behind.next, in_front=False)


def without_tokens(module: fx.GraphModule, num_forward_outputs: int) -> tuple[JointGraph, Tokens]:
    """The joint graph without its tokens, and how many there were."""
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.higher_order.with_effects):
        _without_token(node)
    inputs = module.graph.find_nodes(op="placeholder")
    forward = [node for node in inputs if isinstance(node.meta.get(DESCRIPTOR), ForwardTokenAOTInput)]
    backward = [node for node in inputs if isinstance(node.meta.get(DESCRIPTOR), BackwardTokenAOTInput)]
    tokens = Tokens(len(forward), len(backward))
    if forward or backward:
        output = module.graph.output_node()
        (returned,) = output.args
        kept = slice(len(forward), len(returned) - len(backward))  # type: ignore[arg-type]
        output.args = (tuple(returned[kept]),)  # type: ignore[index, arg-type]
        if output.meta.get(DESCRIPTOR):
            output.meta[DESCRIPTOR] = output.meta[DESCRIPTOR][kept]
        for node in (*forward, *backward):
            module.graph.erase_node(node)
        _take_flat(module)
    return JointGraph(module, num_forward_outputs - len(forward)), tokens


def _without_token(node: fx.Node) -> None:
    """Put the op itself in the place of its `with_effects`, which gives a token and then what the op gives."""
    token, op, *args = node.args
    graph, values = node.graph, node.meta["val"]
    with graph.inserting_before(node):
        made = graph.create_node("call_function", op, tuple(args), node.kwargs, name=f"{node.name}_op")  # type: ignore[arg-type]
    made.meta = {**node.meta, "val": _value(values), EFFECT: True}
    for user in list(node.users):
        assert user.target is operator.getitem, f"{user} takes a token otherwise than by its place"
        place: Any = user.args[1]
        if place == 0:
            user.replace_all_uses_with(token)  # type: ignore[arg-type]
        elif len(values) == 2:
            user.replace_all_uses_with(made)
        else:
            with graph.inserting_before(user):
                part = graph.call_function(operator.getitem, (made, place - 1))
            part.meta = dict(user.meta)
            user.replace_all_uses_with(part)
        graph.erase_node(user)
    graph.erase_node(node)


def _value(values: tuple[Any, ...]) -> Any:
    return values[1] if len(values) == 2 else tuple(values[1:])


def _take_flat(module: fx.GraphModule) -> None:
    """From now on the graph's inputs are its placeholders, one by one; it was traced with two trees of them."""
    module.graph.set_codegen(fx.graph.CodeGen())
    module.recompile()


def _put(module: fx.GraphModule, count: int, before: fx.Node, *, in_front: bool) -> None:
    graph = module.graph
    with graph.inserting_before(before):
        # not the names of tangents, which stand for gradients
        added = [graph.placeholder(f"effect_token_{number}") for number in range(count)]
    for node in added:
        node.meta["val"] = None
    (returned,) = graph.output_node().args
    outputs: Any = (*added, *returned) if in_front else (*returned, *added)  # type: ignore[misc]
    graph.output_node().args = (outputs,)
    module.recompile()
