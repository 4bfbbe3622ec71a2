"""Whether an op is linear in some of its inputs: twice the inputs, twice the result."""

from __future__ import annotations

from collections.abc import Set

from torch import fx

from graphopt.passes.joint.chunks.ops import given, name_of

#: Of their first input alone.
_IN_FIRST = frozenset(
    {
        *("neg", "clone", "_to_copy", "detach", "alias", "expand", "view", "_unsafe_view", "reshape", "unsqueeze"),
        *(
            "squeeze",
            "t",
            "transpose",
            "permute",
            "slice",
            "select",
            "slice_backward",
            "select_backward",
            "sum",
            "mean",
        ),
        *("div", "gather", "cumsum", "nll_loss_backward", "_log_softmax_backward_data", "_softmax_backward_data"),
        *("tanh_backward", "sigmoid_backward", "threshold_backward", "gelu_backward", "silu_backward"),
        *("hardtanh_backward", "leaky_relu_backward", "softplus_backward"),
    }
)
#: Of one of their factors.
_PRODUCTS = frozenset({"mul", "mm", "bmm"})


def is_linear(node: fx.Node, dependent: Set[fx.Node]) -> bool:
    """Whether `node` is linear in its inputs that are `dependent`, all others fixed."""
    name, args = name_of(node), list(node.args)
    read = [position for position, item in enumerate(args) if isinstance(item, fx.Node) and item in dependent]
    if any(isinstance(item, fx.Node) and item in dependent for item in node.kwargs.values()):
        return False
    if name in _IN_FIRST:
        return read == [0]
    if name in _PRODUCTS:
        return len(read) == 1
    if name in ("add", "sub"):
        return read == [0, 1]
    if name == "masked_fill":
        return read == [0] and given(node)["value"] == 0
    if name == "where":
        others = [item for item in args[1:] if not (isinstance(item, fx.Node) and item in dependent)]
        return 0 not in read and all(_is_zero(item) for item in others)
    if name in ("scatter", "scatter_add"):
        source = given(node).get("src", given(node).get("value"))
        return (read == [0] and source == 0) or (read == [3] and _is_zero(args[0]))
    return False


def _is_zero(item: object) -> bool:
    if not isinstance(item, fx.Node):
        return item == 0
    is_full = name_of(item) in ("full", "new_full", "full_like")
    return name_of(item) in ("zeros", "zeros_like", "new_zeros") or (is_full and given(item)["fill_value"] == 0)
