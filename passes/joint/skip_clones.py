"""Pass: what is cloned as it is, is read as it is.

In a functional graph nobody writes to an intermediate value, so a second copy of one serves nothing.
A dropout of probability zero is such a clone, for each attention layer of some models.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import fx

from graphopt.graph.joint import JointGraph

aten = torch.ops.aten


def skip_clones(joint: JointGraph) -> bool:
    """Replace `clone(x)` by `x` where it has x's layout and storage; True where one was.

    Inputs are left alone, as the step may write them, and so is what is returned: its storage is the
    caller's own. A clone of a part of a storage stays, as it lets the whole go.
    """
    returned = set(joint.graph.output_node().all_input_nodes)
    changed = False
    for node in joint.graph.find_nodes(op="call_function", target=aten.clone.default):
        source = node.args[0]
        if isinstance(source, fx.Node) and _same_storage(source, node) and not _is_shared(node, returned):
            users = list(node.users)
            node.replace_all_uses_with(source)
            joint.graph.erase_node(node)
            look_again(users)
            changed = True
    if changed:
        joint.module.recompile()
    return changed


def _same_storage(source: fx.Node, clone: fx.Node) -> bool:
    """Alike in layout, and both all of a storage."""
    a, b = source.meta["val"], clone.meta["val"]
    alike = (a.shape, a.stride(), a.storage_offset()) == (b.shape, b.stride(), b.storage_offset())
    return bool(alike and a.untyped_storage().nbytes() == b.untyped_storage().nbytes())


def _is_shared(clone: fx.Node, returned: set[fx.Node]) -> bool:
    """Whether the clone or what it copies is an input's storage or a returned one, seen through views."""
    source = clone
    while source.op == "call_function" and (source is clone or _looks_at_first(source)):
        source = source.args[0]  # type: ignore[assignment]
    return source.op != "call_function" or bool(_seen_through_views(source) & returned)


def _seen_through_views(node: fx.Node) -> set[fx.Node]:
    """The node, its clones and its views, and theirs."""
    found, waiting = {node}, [node]
    while waiting:
        for user in waiting.pop().users:
            looks = _looks_at_first(user) or user.target is aten.clone.default
            if looks and user.args[0] in found and user not in found:
                found.add(user)
                waiting.append(user)
    return found


def look_again(users: Iterable[fx.Node]) -> None:
    """Views that read a node which took another one's place: their fake tensors must share its storage."""
    waiting = list(users)
    while waiting:
        node = waiting.pop(0)
        if _looks_at_first(node) or node.target is operator.getitem:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
            node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]
            waiting.extend(node.users)


def _looks_at_first(node: fx.Node) -> bool:
    """Whether it is a view of its first input; `_unsafe_view` is one, and does not say so."""
    is_view = isinstance(node.target, torch._ops.OpOverload) and node.target.is_view
    return is_view or node.target is aten._unsafe_view.default
