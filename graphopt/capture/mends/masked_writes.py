"""`h[mask] = value` in what Dynamo captured: how many rows a mask takes, no graph can know.

The write itself has a shape that does not depend on it, but the gradient of `value` is a sum over those rows. It is one
op here, `graphopt::masked_gradient`, with eager's bits.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from graphopt.kernels.masked_gradient import masked_gradient

aten = torch.ops.aten
_MASKS = (torch.bool, torch.uint8)


def with_masked_writes(module: fx.GraphModule) -> None:
    """Replace the writes by masks of values that need a gradient in one of Dynamo's graphs."""
    writes = [node for node in module.graph.nodes if _is_write(node) and _needs(node)]
    for node in writes:
        node.target = _WRITES[node.target]
        node.op = "call_function"
    if writes:
        module.recompile()


def _is_write(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and node.target in _WRITES and len(node.args) >= 3


def _needs(node: fx.Node) -> bool:
    """Whether a mask is among the indices, and the value needs a gradient."""
    indices, value = node.args[1], node.args[2]
    given = [index for index in pytree.tree_leaves(indices) if isinstance(index, fx.Node)]
    return _example(value, "requires_grad") is True and any(_example(index, "dtype") in _MASKS for index in given)


def _example(node: object, attribute: str) -> Any:
    return getattr(node.meta.get("example_value"), attribute, None) if isinstance(node, fx.Node) else None


def _set_item(target: Tensor, key: Any, value: Tensor) -> None:
    part, indices = _sliced(target, key if isinstance(key, tuple) else (key,))
    _write(part, indices, value, False)


def _index_put_(target: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Tensor:
    _write(target, list(indices), values, accumulate)
    return target


def _index_put(target: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Tensor:
    return _index_put_(target.clone(), indices, values, accumulate)


#: Of what Python has for it, what to call instead.
_WRITES: dict[Any, Any] = {
    operator.setitem: _set_item,
    "index_put_": _index_put_,
    "index_put": _index_put,
    torch.index_put_: _index_put_,
    torch.index_put: _index_put,
}


def _sliced(target: Tensor, key: tuple[Any, ...]) -> tuple[Tensor, list[Tensor | None]]:
    """The view that a key's slices and numbers leave of a tensor, and its tensors by dimension."""
    named = sum(1 for item in key if item is not None and item is not Ellipsis and not _mask_dimensions(item))
    named += sum(map(_mask_dimensions, key))
    indices: list[Tensor | None] = []
    for item in key:
        dimension = len(indices)
        if item is Ellipsis:
            indices += [None] * (target.dim() - named)
        elif item is None:
            target = target.unsqueeze(dimension)
            named += 1
            indices.append(None)
        elif isinstance(item, slice):
            part: Any = (*[slice(None)] * dimension, item)
            target = target[part]
            indices.append(None)
        elif isinstance(item, Tensor):
            indices.append(item)
            # a mask stands for as many dimensions as it has
            indices += [_TAKEN] * (max(_mask_dimensions(item), 1) - 1)
        else:
            target = target.select(dimension, item)
            named -= 1
    return target, [index for index in indices if index is not _TAKEN]


#: Keeps the place of a dimension that belongs to the mask before it.
_TAKEN: Any = object()


def _mask_dimensions(item: object) -> int:
    return item.dim() if isinstance(item, Tensor) and item.dtype in _MASKS else 0


def _write(target: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool) -> None:
    while values.dim() and values.shape[0] == 1:  # as Python's own way of writing does
        values = values.squeeze(0)
    _Write.apply(target, values, accumulate, *indices)  # type: ignore[no-untyped-call]


class _Write(torch.autograd.Function):
    """`index_put_`, with the gradients of derivatives.yaml."""

    @staticmethod
    def forward(ctx: Any, target: Tensor, values: Tensor, accumulate: bool, *indices: Tensor | None) -> Tensor:
        """Write into the target."""
        ctx.mark_dirty(target)
        ctx.save_for_backward(*indices)
        ctx.accumulate, ctx.shape = accumulate, values.shape
        # AOTAutograd would take a write without gradients for one that none flow through
        with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad():
            return aten.index_put_.default(target, list(indices), values, accumulate)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        """Of the target and of the values."""
        indices = ctx.saved_tensors
        of_values = masked_gradient(gradient, list(indices), ctx.shape)
        if not ctx.accumulate:
            gradient = aten.index_put.default(gradient, list(indices), gradient.new_zeros(()))
        return gradient, of_values, None, *[None] * len(indices)
