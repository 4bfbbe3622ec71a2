"""Which operators do what to rows: by name, so that their overloads are told apart by their arguments alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

#: Element by element, though torch does not say so of them.
ELEMENTWISE = frozenset(
    {
        *("_to_copy", "detach", "alias", "masked_fill", "lift_fresh_copy"),
        *("full_like", "zeros_like", "ones_like", "empty_like"),
        *("hardtanh_backward", "softplus_backward", "leaky_relu_backward", "elu_backward"),
    }
)
#: Of the same shape as their inputs, each element made of those along one dimension: the position of that argument.
ALONG = {
    "_log_softmax": 1,
    "_softmax": 1,
    "_log_softmax_backward_data": 2,
    "_softmax_backward_data": 2,
    "cumsum": 1,
}
#: One element of those along some dimensions.
REDUCING = frozenset(("sum", "mean", "amax", "amin", "logsumexp", "argmax", "any", "all", "prod", "linalg_vector_norm"))
#: Tensors of one number, by the position of their shape; the tensor that `new_zeros` takes gives nothing but its kind.
MADE = {"full": 0, "zeros": 0, "ones": 0, "empty": 0, "new_zeros": 1, "new_full": 1, "new_ones": 1, "new_empty": 1}


def name_of(node: fx.Node) -> str:
    """The operator's name without its overload's; "" where it is none of ATen's."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return str(target.overloadpacket.__name__)
    return ""


def is_elementwise(node: fx.Node) -> bool:
    """Whether each element of what it makes is made of the elements at the same place, with broadcasting."""
    target = node.target
    if name_of(node) in ELEMENTWISE:
        return True
    return bool(name_of(node)) and torch.Tag.pointwise in target.tags and not target._schema.is_mutable  # type: ignore


def given(node: fx.Node) -> Mapping[str, Any]:
    """All arguments by name, those that are left out with their defaults."""
    named = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs  # type: ignore
    return {a.name: named.get(a.name, a.default_value) for a in node.target._schema.arguments}  # type: ignore[union-attr]


def reduced(node: fx.Node) -> tuple[tuple[int, ...], bool]:
    """The dimensions that an op of `REDUCING` takes together, and whether they stay with one element each."""
    named = given(node)
    dims, of = named.get("dim"), tensor(node.args[0]).dim()
    kept = bool(named.get("keepdim", False))
    if dims is None or dims == []:
        return tuple(range(of)), kept
    return tuple(sorted(d % of for d in ([dims] if isinstance(dims, int) else dims))), kept


def tensor(node: Any) -> torch.Tensor:
    """The (fake) tensor that a node holds."""
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor)
    return value


def is_tensor(item: Any) -> bool:
    """Whether an argument is a node that holds one tensor."""
    return isinstance(item, fx.Node) and isinstance(item.meta.get("val"), torch.Tensor)


def shape_of(node: Any) -> tuple[int, ...]:
    """The sizes of a node's tensor."""
    return tuple(tensor(node).shape)
