"""Pass: what is a constant of this capture becomes one in the graph."""

from __future__ import annotations

from typing import Any, cast

from torch import fx

from graphopt.graph.joint import JointGraph
from graphopt.graph.numbers import SYMBOLS, is_constant, is_number, layout_of, plain, replace_input
from graphopt.graph.step_graph import tensors_of


def specialize(joint: JointGraph) -> bool:
    """Replace every node that holds a number which is constant by its value; True where one was replaced.

    Numbers that no guard ties to a value, sizes among them, stay as they are: they may differ from call to call.
    Placeholders stay, unused, so that the calling convention is kept.
    """
    for node in joint.graph.nodes:
        for tensor in tensors_of(node):
            for size in layout_of(tensor):
                if is_constant(size):
                    plain(size)
    changed = False
    for node in list(joint.graph.nodes):
        if (
            node.op in ("call_function", "placeholder")
            and node.users
            and is_number(node)
            and is_constant(node.meta["val"])
        ):
            for user in list(node.users):
                replace_input(user, node, plain(node.meta["val"]))
            changed = True
        elif any(isinstance(item, SYMBOLS) and is_constant(item) for item in _literals(node)):
            node.args = _plain_literals(node.args)
            node.kwargs = _plain_literals(node.kwargs)
            changed = True
    if changed:
        joint.graph.eliminate_dead_code()
        joint.module.recompile()
    return changed


def _literals(node: fx.Node) -> list[Any]:
    found: list[Any] = []
    fx.node.map_aggregate(cast(Any, (node.args, node.kwargs)), found.append)
    return found


def _plain_literals(arguments: Any) -> Any:
    return fx.node.map_aggregate(arguments, lambda item: plain(item) if is_constant(item) else item)
