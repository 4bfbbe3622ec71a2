"""Pass: what functionalization copies only to scatter it is scattered as it is."""

from __future__ import annotations

import torch
from torch import fx

from graphopt.graph.joint import JointGraph

aten = torch.ops.aten

_SCATTERS = (
    aten.slice_scatter.default,
    aten.select_scatter.default,
    aten.diagonal_scatter.default,
    aten.as_strided_scatter.default,
)


def skip_copies(joint: JointGraph) -> bool:
    """Replace `copy(view, source)` by `source` where only scatters read it; True where one was.

    `x[:, 0] = y` becomes copy + scatter in a functional graph; the scatter reads values only, so the
    copy, which allocates as much as the view's whole storage, is for nothing. Both must agree in
    shape, dtype and device: otherwise the copy converts.
    """
    changed = False
    for node in joint.graph.find_nodes(op="call_function", target=aten.copy.default):
        source = node.args[1]
        if (
            isinstance(source, fx.Node)
            and _same_kind(node, source)
            and all(_scatters(user, node) for user in node.users)
        ):
            node.replace_all_uses_with(source)
            joint.graph.erase_node(node)
            changed = True
    if changed:
        joint.graph.eliminate_dead_code(_is_impure)
        joint.module.recompile()
    return changed


def _same_kind(node: fx.Node, source: fx.Node) -> bool:
    made, given = node.meta["val"], source.meta["val"]
    return bool(made.shape == given.shape and made.dtype == given.dtype and made.device == given.device)


def _scatters(user: fx.Node, node: fx.Node) -> bool:
    return user.target in _SCATTERS and user.args[1] is node and user.args[0] is not node


def _is_impure(node: fx.Node) -> bool:
    """Only views that nobody reads any more may go."""
    return not (isinstance(node.target, torch._ops.OpOverload) and node.target.is_view)
