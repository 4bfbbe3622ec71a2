"""Sums, extremes and softmax along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graphopt.formats.onnx.ops.node import Handler, OnnxNode, axis_of, integers, known, listed

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _reduce(function: Reduction) -> Handler:
    def run(node: OnnxNode, x: Tensor, axes: Tensor | None = None) -> Tensor:
        along = listed(node, "axes", axes, [])
        if not along and node.get("noop_with_empty_axes", 0):
            # each element is reduced for itself: a norm or a logarithm still does something
            return function(x.unsqueeze(0), [0], False)
        dims = [axis_of(axis, x.dim()) for axis in along] if along else list(range(x.dim()))
        if not x.dim():
            return function(x.reshape(1), [0], False)
        return function(x, dims, bool(node.get("keepdims", 1)))

    return run


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return x.sum(dims, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if x.dtype.is_floating_point:
        return x.mean(dims, keepdim=keep)
    return x.to(torch.float64).mean(dims, keepdim=keep).to(x.dtype)


def _extreme(function: Callable[..., Tensor]) -> Reduction:
    def run(x: Tensor, dims: list[int], keep: bool) -> Tensor:
        if all(x.shape[dim] for dim in dims):
            return function(x, dims, keepdim=keep)
        kept = [1 if d in dims else s for d, s in enumerate(x.shape) if keep or d not in dims]
        return torch.full(kept, _edge(x.dtype, least=function is torch.amax), dtype=x.dtype)

    return run


def _edge(dtype: torch.dtype, *, least: bool) -> float:
    """The extreme of nothing."""
    if dtype is torch.bool:
        return float(not least)
    if dtype.is_floating_point:
        return float("-inf" if least else "inf")
    info = torch.iinfo(dtype)
    return info.min if least else info.max


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, keepdim=keep, dtype=x.dtype)
    return x


def _log_sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return _sum(x, dims, keep).log()


def _log_sum_exp(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, dims, keepdim=keep).to(x.dtype)


def _l2(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return _sum(x * x, dims, keep).to(torch.promote_types(x.dtype, torch.float32)).sqrt().to(x.dtype)


def _argument(function: Callable[..., Tensor]) -> Handler:
    def run(node: OnnxNode, x: Tensor) -> Tensor:
        axis, keep = axis_of(node.get("axis", 0), x.dim()), bool(node.get("keepdims", 1))
        if node.get("select_last_index", 0):
            return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)
        return function(x, axis, keepdim=keep)

    return run


def _softmax(function: Callable[..., Tensor]) -> Handler:
    def run(node: OnnxNode, x: Tensor) -> Tensor:
        axis = axis_of(node.get("axis", -1 if node.opset >= 13 else 1), x.dim())
        if node.opset >= 13 or axis == x.dim() - 1:
            return function(x, axis)
        # below 13 all dimensions from `axis` on are one
        return function(x.flatten(axis), axis).reshape(x.shape)

    return run


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def _log_softmax(x: Tensor, axis: int) -> Tensor:
    return F.log_softmax(x, axis)


def _plain_softmax(x: Tensor, axis: int) -> Tensor:
    return F.softmax(x, axis)


def _cumulative(product: bool) -> Handler:
    def run(node: OnnxNode, x: Tensor, axis: Tensor) -> Tensor:
        (dim,) = integers(axis, "axis")
        x = x.flip(dim) if node.get("reverse", 0) else x
        summed = x.cumprod(dim) if product else x.cumsum(dim)
        summed = summed.to(x.dtype)
        if node.get("exclusive", 0):
            first = torch.full_like(x.narrow(dim, 0, 1), 1 if product else 0)
            summed = torch.cat([first, summed.narrow(dim, 0, x.shape[dim] - 1)], dim)
        return summed.flip(dim) if node.get("reverse", 0) else summed

    return run


def _top_k(node: OnnxNode, x: Tensor, count: Tensor | None = None) -> Any:
    amount = int(known(count, "k").item()) if count is not None else int(node.get("k"))
    largest, ordered = bool(node.get("largest", 1)), bool(node.get("sorted", 1))
    if x.dtype in (torch.uint16, torch.uint32, torch.uint64):
        values, places = torch.topk(x.to(torch.int64), amount, node.get("axis", -1), largest, ordered)
        return values.to(x.dtype), places
    # a stable order: among equals ONNX takes the first
    values, places = torch.sort(x, dim=node.get("axis", -1), descending=largest, stable=True)
    axis = axis_of(node.get("axis", -1), x.dim())
    return values.narrow(axis, 0, amount), places.narrow(axis, 0, amount)


REDUCTIONS: dict[str, Handler] = {
    "ReduceSum": _reduce(_sum),
    "ReduceMean": _reduce(_mean),
    "ReduceMax": _reduce(_extreme(torch.amax)),
    "ReduceMin": _reduce(_extreme(torch.amin)),
    "ReduceProd": _reduce(_product),
    "ReduceL1": _reduce(lambda x, dims, keep: _sum(x.abs(), dims, keep)),
    "ReduceL2": _reduce(_l2),
    "ReduceSumSquare": _reduce(lambda x, dims, keep: _sum(x * x, dims, keep)),
    "ReduceLogSum": _reduce(_log_sum),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ArgMax": _argument(torch.argmax),
    "ArgMin": _argument(torch.argmin),
    "Softmax": _softmax(_plain_softmax),
    "LogSoftmax": _softmax(_log_softmax),
    "Hardmax": _softmax(_hardmax),
    "CumSum": _cumulative(product=False),
    "CumProd": _cumulative(product=True),
    "TopK": _top_k,
}
