"""Pass: each parameter is updated as soon as its gradient exists, so that gradients never all live.

As "optimizer in the backward" (LOMO, Lv et al. 2023; torch's post-accumulate-grad hooks), in the graph:
possible where nothing has to be known of all gradients first, no global norm, no overflow, no sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from graphopt.graph.joint import JointGraph
from graphopt.graph.roles import DESCRIPTOR, MicroFirst, MicroOption, MicroState, add_input
from graphopt.passes.window.update import NUMBERS, STATE, TARGETS, GroupUpdate


def update_in_backward(
    joint: JointGraph, updates: Mapping[int, GroupUpdate], *, clip_value: float | None = None
) -> bool:
    """Update the primals at positions `updates`, each by itself, where its gradient appears; True where one does.

    Each gets its optimizer state as new inputs, and the numbers of its group. The op stands behind
    every captured reader of the parameter; `settle` keeps it there in other schedules. Other
    gradients are not computed.
    """
    found, primals = joint.gradients, joint.primals
    if not found:
        return False
    joint.set_gradients({})
    for position, gradient in found.items():
        if position in updates:
            _add_update(joint.graph, primals[position], gradient, updates[position], clip_value)
    joint.graph.eliminate_dead_code()
    joint.module.recompile()
    return True


def _add_update(
    graph: fx.Graph, parameter: fx.Node, gradient: fx.Node, how: GroupUpdate, clip_value: float | None
) -> None:
    index = parameter.meta[DESCRIPTOR].idx
    state = {f"{key}s": [_state(graph, parameter, index, key)] if key in how.state else [] for key in STATE[how.kind]}
    flags: dict[str, Any] = {key: flag for key, flag in how.flags if key != "first"}
    if how.kind == "sgd":
        flags["first"] = add_input(graph, f"first_{parameter.name}", MicroFirst(index), False)
    numbers = {key: _number(graph, how.group, key) for key in NUMBERS[how.kind]}
    arguments: dict[str, Any] = {"params": [parameter], "gradients": [gradient], **state, "copies": []}
    is_elsewhere = how.elsewhere.issuperset(how.parameters)
    target = TARGETS[how.kind, is_elsewhere]
    limits: dict[str, Any] = {} if clip_value is None else {"clip_value": clip_value}
    limits |= {"block_elements": how.block_elements} if is_elsewhere else {}
    with graph.inserting_after(_last_reader(graph, parameter, gradient)):
        node = graph.call_function(target, (), {**arguments, **numbers, **flags, **limits})
    node.meta = {key: value for key, value in gradient.meta.items() if key not in ("val", "tensor_meta", DESCRIPTOR)}
    node.meta["partitioner_tag"] = "is_backward"


def _last_reader(graph: fx.Graph, parameter: fx.Node, gradient: fx.Node) -> fx.Node:
    """The last node that reads the parameter or a view of it, or the gradient's own."""
    looks = {parameter}
    last = gradient
    seen_gradient = False
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        reads = any(source in looks for source in node.all_input_nodes)
        if reads and isinstance(node.target, torch._ops.OpOverload) and node.target.is_view:
            looks.add(node)
        seen_gradient = seen_gradient or node is gradient
        if reads and seen_gradient:
            last = node
    return last


def _state(graph: fx.Graph, parameter: fx.Node, index: int, key: str) -> fx.Node:
    value = parameter.meta["val"]
    like = value.new_empty((), dtype=torch.float32) if key == "step" else torch.empty_like(value)
    return add_input(graph, f"{key}_{parameter.name}", MicroState(index, key), like)


def _number(graph: fx.Graph, group: int, key: str) -> fx.Node:
    descriptor = MicroOption(group, key)
    found: list[fx.Node] = [n for n in graph.find_nodes(op="placeholder") if n.meta.get(DESCRIPTOR) == descriptor]
    # the number itself changes with every step of a scheduler; its price does not
    return found[0] if found else add_input(graph, f"{key}_of_group_{group}", descriptor, 0.5)
