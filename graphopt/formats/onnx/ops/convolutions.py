"""Convolutions, with the paddings that ONNX knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.ops.node import Handler, OnnxNode


def paddings(
    node: OnnxNode, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """What is added in front and behind along each spatial axis, by `pads` or by `auto_pad`."""
    mode = node.get("auto_pad", "NOTSET")
    count = len(sizes)
    if mode in ("NOTSET", ""):
        pads = node.get("pads") or [0] * (2 * count)
        if len(pads) != 2 * count:
            raise OnnxError(f"{len(pads)} pads for {count} spatial dimensions")
        return list(pads[:count]), list(pads[count:])
    if mode == "VALID":
        return [0] * count, [0] * count
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise OnnxError(f"auto_pad {mode!r} is not known here")
    total = [
        max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    less, more = [each // 2 for each in total], [each - each // 2 for each in total]
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def padded(x: Tensor, before: Sequence[int], behind: Sequence[int], value: float = 0.0) -> Tensor:
    """`x` with `value` around its last dimensions."""
    flat = [width for pair in reversed(list(zip(before, behind, strict=True))) for width in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _spatial(node: OnnxNode, x: Tensor, w: Tensor) -> tuple[int, list[int], list[int]]:
    """How many spatial dimensions there are, strides and dilations."""
    count = x.dim() - 2
    if count not in _CONVOLUTIONS or w.dim() != x.dim():
        raise OnnxError(f"inputs of {x.dim()} and {w.dim()} dimensions")
    return count, node.get("strides", [1] * count), node.get("dilations", [1] * count)


def _conv(node: OnnxNode, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    count, strides, dilations = _spatial(node, x, w)
    before, behind = paddings(node, x.shape[2:], w.shape[2:], strides, dilations)
    groups = node.get("group", 1)
    if before == behind:
        return _CONVOLUTIONS[count](x, w, b, strides, before, dilations, groups)
    return _CONVOLUTIONS[count](padded(x, before, behind), w, b, strides, 0, dilations, groups)


def _conv_transpose(node: OnnxNode, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    count, strides, dilations = _spatial(node, x, w)
    groups, extra = node.get("group", 1), list(node.get("output_padding", [0] * count))
    full = [
        (size - 1) * stride + (width - 1) * dilation + 1
        for size, stride, width, dilation in zip(x.shape[2:], strides, w.shape[2:], dilations, strict=True)
    ]
    shape, mode = node.get("output_shape"), node.get("auto_pad", "NOTSET")
    if shape is not None or mode.startswith("SAME"):
        wanted = shape[-count:] if shape is not None else [s * t for s, t in zip(x.shape[2:], strides, strict=True)]
        total = [f + e - t for f, e, t in zip(full, extra, wanted, strict=True)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        before, behind = (less, more) if mode == "SAME_UPPER" else (more, less)
    else:
        before, behind = paddings(node, x.shape[2:], w.shape[2:], strides, dilations)
    function = _TRANSPOSED[count]
    if (
        before == behind
        and min(before) >= 0
        and all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True))
    ):
        return function(x, w, b, strides, before, extra, groups, dilations)
    # torch has one padding for both sides: all is computed, and cut
    y = function(x, w, b, strides, 0, 0, groups, dilations)
    return padded(y, [-width for width in before], [e - width for e, width in zip(extra, behind, strict=True)])


CONVOLUTIONS: dict[str, Handler] = {"Conv": _conv, "ConvTranspose": _conv_transpose}
