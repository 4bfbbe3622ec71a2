"""Pooling over windows, and over all of a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.ops.convolutions import padded, paddings
from graphopt.formats.onnx.ops.node import Handler, OnnxNode

_MAXIMA: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEANS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _windows(node: OnnxNode, x: Tensor) -> tuple[int, list[int], list[int], list[int], list[int], list[int]]:
    """Spatial dimensions, kernel, strides, dilations, and what is added in front and behind."""
    kernel = node.get("kernel_shape")
    count = x.dim() - 2
    if count not in _MAXIMA or not kernel or len(kernel) != count:
        raise OnnxError(f"a kernel {kernel} on an input of {x.dim()} dimensions")
    strides, dilations = node.get("strides", [1] * count), node.get("dilations", [1] * count)
    before, behind = paddings(node, x.shape[2:], kernel, strides, dilations)
    if node.get("ceil_mode", 0):
        behind = [
            b + _beyond(*sizes)
            for b, *sizes in zip(behind, x.shape[2:], kernel, strides, dilations, before, behind, strict=True)
        ]
    return count, list(kernel), list(strides), list(dilations), before, behind


def _beyond(size: int, width: int, stride: int, dilation: int, before: int, behind: int) -> int:
    """How far the last window of a rounded-up count reaches beyond the padding; none starts in it alone."""
    reach = (width - 1) * dilation + 1
    count = -(-(size + before + behind - reach) // stride) + 1
    if (count - 1) * stride >= size + before:
        count -= 1
    return max((count - 1) * stride + reach - (size + before + behind), 0)


def _max_pool(node: OnnxNode, x: Tensor) -> Any:
    count, kernel, strides, dilations, before, behind = _windows(node, x)
    same = before == behind and all(2 * pad <= width for pad, width in zip(before, kernel, strict=True))
    whole = x.dtype if not x.dtype.is_floating_point else None
    values = x.to(torch.float32) if whole else x
    function = _MAXIMA[count]
    if not node.wants(1):
        if same:
            y = function(values, kernel, strides, before, dilations)
        else:
            y = function(padded(values, before, behind, float("-inf")), kernel, strides, 0, dilations)
        return y.to(whole) if whole else y
    if not same:
        raise OnnxError("places of maxima, with other paddings in front than behind")
    y, places = function(values, kernel, strides, before, dilations, return_indices=True)
    return (y.to(whole) if whole else y), _flat_places(node, x, places)


def _flat_places(node: OnnxNode, x: Tensor, places: Tensor) -> Tensor:
    """Places in all of the input, where torch counts inside of each channel."""
    sizes = list(x.shape[2:])
    size = 1
    for each in sizes:
        size *= each
    if node.get("storage_order", 0) and len(sizes) == 2:
        places = places % sizes[1] * sizes[0] + torch.div(places, sizes[1], rounding_mode="floor")
    starts = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], *[1] * len(sizes)) * size
    return places + starts


def _average_pool(node: OnnxNode, x: Tensor) -> Tensor:
    count, kernel, strides, dilations, before, behind = _windows(node, x)
    with_padding, rounded_up = bool(node.get("count_include_pad", 0)), bool(node.get("ceil_mode", 0))
    plain = set(dilations) == {1} and before == behind
    if plain and all(2 * pad <= width for pad, width in zip(before, kernel, strict=True)) and not rounded_up:
        return _MEANS[count](x, kernel, strides, before, False, with_padding)
    sums = _sums(padded(x, before, behind), kernel, strides, dilations)
    ones = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype)
    if with_padding:
        declared = paddings(node, x.shape[2:], kernel, strides, dilations)
        ones = padded(ones, *declared, value=1.0)
        counts = padded(ones, [0] * count, [b - d for b, d in zip(behind, declared[1], strict=True)])
    else:
        counts = padded(ones, before, behind)
    return sums / _sums(counts, kernel, strides, dilations)


def _sums(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """Sums over windows, axis by axis."""
    for axis, (width, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True), 2):
        x = x.unfold(axis, (width - 1) * dilation + 1, stride)[..., ::dilation].sum(-1)
    return x


def _lp_pool(node: OnnxNode, x: Tensor) -> Any:
    _, kernel, strides, dilations, before, behind = _windows(node, x)
    p = node.get("p", 2)
    return _sums(padded(x.abs() ** p, before, behind), kernel, strides, dilations) ** (1.0 / p)


def _global(function: Callable[[Tensor, list[int]], Tensor]) -> Handler:
    def run(_: OnnxNode, x: Tensor) -> Tensor:
        return function(x, list(range(2, x.dim())))

    return run


def _global_lp(node: OnnxNode, x: Tensor) -> Any:
    p = node.get("p", 2)
    return (x.abs() ** p).sum(list(range(2, x.dim())), keepdim=True) ** (1.0 / p)


POOLING: dict[str, Handler] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _global(lambda x, dims: x.mean(dims, keepdim=True)),
    "GlobalMaxPool": _global(lambda x, dims: x.amax(dims, keepdim=True)),
    "GlobalLpPool": _global_lp,
}
