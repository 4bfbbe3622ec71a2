"""Pass: an input to which the step adds is added to in place, as in eager (`buffer += 1`).

A functional graph adds into a new tensor and copies that back at the end.
"""

from __future__ import annotations

import torch
from torch import fx

from graphopt.graph.joint import JointGraph

aten = torch.ops.aten


def add_in_place(joint: JointGraph) -> bool:
    """Replace `copy_(input, add(input, x))` by `add_(input, x)` where nobody else reads either; True where one was."""
    changed = False
    for node in joint.graph.find_nodes(op="call_function", target=aten.copy_.default):
        target, added = node.args[:2]
        if isinstance(target, fx.Node) and isinstance(added, fx.Node) and _may_add(node, target, added):
            node.target, node.args = aten.add_.Tensor, added.args
            joint.graph.erase_node(added)
            changed = True
    if changed:
        joint.module.recompile()
    return changed


def _may_add(copy: fx.Node, target: fx.Node, added: fx.Node) -> bool:
    """Whether the sum is the input's own, of its type and layout, and a number is added to it."""
    if added.target is not aten.add.Tensor or added.args[0] is not target or added.kwargs:
        return False
    a, b = target.meta["val"], added.meta["val"]
    alike = (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
    readers = {user for user in target.users if user.op != "output"}
    alone = set(added.users) == {copy} and readers == {copy, added}
    return target.op == "placeholder" and isinstance(added.args[1], (int, float)) and alike and alone
