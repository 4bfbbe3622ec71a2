"""Pass: tensors made only in the shape of another one no longer keep that one alive."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphopt.graph.joint import JointGraph

aten = torch.ops.aten

#: op -> (op that takes a size in place of a tensor, number of arguments to leave out behind the tensor)
_BY_SIZE = {
    aten.zeros_like.default: (aten.zeros.default, 0),
    aten.ones_like.default: (aten.ones.default, 0),
    aten.empty_like.default: (aten.empty.memory_format, 0),
    aten.full_like.default: (aten.full.default, 0),
    aten.rand_like.default: (aten.rand.default, 0),
    aten.randn_like.default: (aten.randn.default, 0),
    aten.new_zeros.default: (aten.zeros.default, 1),
    aten.new_ones.default: (aten.ones.default, 1),
    aten.new_empty.default: (aten.empty.memory_format, 1),
    aten.new_full.default: (aten.full.default, 1),
}


def free_shapes(joint: JointGraph) -> bool:
    """Give `zeros_like(x)` and its kin sizes instead of `x`; True where one was changed.

    Only contiguous results: another layout is the tensor's own.
    """
    changed = False
    for node in list(joint.graph.nodes):
        if node.op == "call_function" and node.target in _BY_SIZE and node.meta["val"].is_contiguous():
            _rewrite(node)
            changed = True
    if changed:
        joint.module.recompile()
    return changed


def _rewrite(node: fx.Node) -> None:
    target, skipped = _BY_SIZE[node.target]  # type: ignore[index]
    value: torch.Tensor = node.meta["val"]
    rest: tuple[Any, ...] = node.args[1 + skipped :]
    node.target = target
    node.args = (list(value.shape), *rest)
    node.kwargs = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
