"""Values in few bits. Rounding lets no gradient through: what is behind it does not train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.ops.node import Handler, OnnxNode, axis_of, torch_dtype

_ENDS = {
    torch.int8: (-128, 127),
    torch.uint8: (0, 255),
    torch.int16: (-(2**15), 2**15 - 1),
    torch.uint16: (0, 2**16 - 1),
}


def _spread(node: OnnxNode, each: Tensor, x: Tensor) -> Tensor:
    """Scales or zero points, of all, of an axis or of blocks, as they stand beside `x`."""
    if each.numel() == 1 and each.dim() <= 1:
        return each.reshape([])
    axis, block = axis_of(node.get("axis", 1), x.dim()), node.get("block_size", 0)
    if each.dim() == 1:
        return each.reshape([-1 if dim == axis else 1 for dim in range(x.dim())])
    return each.repeat_interleave(block or x.shape[axis] // each.shape[axis], axis).narrow(axis, 0, x.shape[axis])


def _quantise(node: OnnxNode, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    dtype = zero.dtype if zero is not None else torch_dtype(node.get("output_dtype") or 2)
    if dtype not in _ENDS:
        raise OnnxError(f"quantisation to {dtype} is not known here")
    y = torch.round(x / _spread(node, scale, x).to(x.dtype))
    if zero is not None:
        y = y + _spread(node, zero, x).to(y.dtype)
    return torch.clamp(y, *_ENDS[dtype]).to(torch.int32).to(dtype)


def _dequantise(node: OnnxNode, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    wide = x.to(torch.int32)
    if zero is not None:
        wide = wide - _spread(node, zero, x).to(torch.int32)
    return wide.to(scale.dtype) * _spread(node, scale, x)


def _quantise_by_range(_: OnnxNode, x: Tensor) -> Any:
    low, high = torch.clamp(x.min(), max=0.0), torch.clamp(x.max(), min=0.0)
    scale = (high - low) / 255
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    y = torch.clamp(torch.round(x / scale) + zero, 0, 255)
    return y.to(torch.uint8), scale, zero.to(torch.uint8)


QUANTISATION: dict[str, Handler] = {
    "QuantizeLinear": _quantise,
    "DequantizeLinear": _dequantise,
    "DynamicQuantizeLinear": _quantise_by_range,
}
