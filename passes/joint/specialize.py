"""Pass: symbolic sizes become the numbers of this capture."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from graphopt.graph.joint import JointGraph


def specialize(joint: JointGraph) -> bool:
    """Replace every node that holds a symbolic number by its value; True where one was replaced.

    A plan is made for one set of shapes. Reading a symbol's value adds the guard that makes a new
    shape a new capture. Placeholders stay, unused, so that the calling convention is kept.
    """
    changed = False
    for node in list(joint.graph.nodes):
        if node.op in ("call_function", "placeholder") and node.users and _is_symbol(node.meta.get("val")):
            _replace_uses(node, plain(node.meta["val"]))
            changed = True
        elif any(_is_symbol(item) for item in _literals(node)):
            node.args = _plain_literals(node.args)
            node.kwargs = _plain_literals(node.kwargs)
            changed = True
    if changed:
        joint.graph.eliminate_dead_code()
        joint.module.recompile()
    return changed


def plain(number: Any) -> Any:
    """The number that a symbol stands for in this capture, guarded; anything else as it is."""
    if isinstance(number, torch.SymInt):
        return int(number)
    if isinstance(number, torch.SymFloat):
        return float(number)
    if isinstance(number, torch.SymBool):
        return bool(number)
    return number


def _is_symbol(item: object) -> bool:
    return isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool))


def _replace_uses(node: fx.Node, number: object) -> None:
    def swap(source: fx.Node) -> Any:
        return number if source is node else source

    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, swap)
        user.kwargs = fx.node.map_arg(user.kwargs, swap)


def _literals(node: fx.Node) -> list[Any]:
    found: list[Any] = []
    fx.node.map_aggregate(cast(Any, (node.args, node.kwargs)), found.append)
    return found


def _plain_literals(arguments: Any) -> Any:
    return fx.node.map_aggregate(arguments, plain)
