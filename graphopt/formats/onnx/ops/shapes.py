"""What moves elements or counts them, and computes nothing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.ops.node import Handler, OnnxNode, axis_of, integers, known, listed


def _reshape(node: OnnxNode, x: Tensor, shape: Tensor | None = None) -> Tensor:
    sizes = listed(node, "shape", shape)
    if sizes is None:
        raise OnnxError("its shape is missing")
    if not node.get("allowzero", 0):
        if any(size == 0 and place >= x.dim() for place, size in enumerate(sizes)):
            raise OnnxError(f"a size is taken over from a dimension that the input, of {x.dim()}, has not")
        sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
    return x.reshape(_with_batch(node, sizes, x))


def _with_batch(node: OnnxNode, sizes: list[int], x: Tensor) -> list[int]:
    """The sizes with the batch that is asked for, where they begin with the file's and hold another count.

    A size that is left to be found (-1) would swallow the batch: there it goes where the input begins with it.
    """
    if node.batch is None or not sizes or sizes[0] != node.batch[0] or node.batch[0] == node.batch[1]:
        return sizes
    changed = [node.batch[1], *sizes[1:]]
    held = max(1, math.prod(size for size in changed if size != -1))
    fits = x.shape[:1] == (node.batch[1],) and x.numel() % held == 0 if -1 in changed else x.numel() == held
    return changed if fits else sizes


def _flatten(node: OnnxNode, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(node: OnnxNode, x: Tensor) -> Tensor:
    return x.permute(node.get("perm", list(reversed(range(x.dim())))))


def _squeeze(node: OnnxNode, x: Tensor, axes: Tensor | None = None) -> Tensor:
    along = listed(node, "axes", axes)
    if along is None:
        return x.squeeze()
    along = [axis_of(axis, x.dim()) for axis in along]
    if any(x.shape[axis] != 1 for axis in along):
        raise OnnxError(f"axes {along} of {list(x.shape)} are not all of size 1")
    return x.squeeze(along)


def _unsqueeze(node: OnnxNode, x: Tensor, axes: Tensor | None = None) -> Tensor:
    along = listed(node, "axes", axes, [])
    assert along is not None
    dim = x.dim() + len(along)
    for axis in sorted(axis_of(axis, dim) for axis in along):
        x = x.unsqueeze(axis)
    return x


def _expand(_: OnnxNode, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, integers(shape, "shape")))


def _concat(node: OnnxNode, *inputs: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    return torch.cat(inputs, axis) if len(inputs) > 1 else inputs[0]


def _split(node: OnnxNode, x: Tensor, sizes: Tensor | None = None) -> Any:
    axis = axis_of(node.get("axis", 0), x.dim())
    parts = listed(node, "split", sizes)
    if parts is None:
        count = len(node.wanted)
        each = -(-x.shape[axis] // count)
        parts = [max(0, min(each, x.shape[axis] - each * number)) for number in range(count)]
    return tuple(x.split(parts, axis))


def _slice(
    node: OnnxNode,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = listed(node, "starts", starts), listed(node, "ends", ends)
    if first is None or last is None:
        raise OnnxError("its starts or ends are missing")
    along = listed(node, "axes", axes, list(range(len(first)))) or []
    by = integers(steps, "steps") if steps is not None else [1] * len(first)
    for start, end, axis, step in zip(first, last, along, by, strict=True):
        axis = axis_of(axis, x.dim())
        if step == 0:
            raise OnnxError("a step of 0")
        start, end, step = (
            slice(start, end, step).indices(x.shape[axis]) if step > 0 else _backwards(start, end, step, x.shape[axis])
        )
        if step > 0:
            if (start, end, step) != (0, x.shape[axis], 1):
                x = x[(slice(None),) * axis + (slice(start, max(end, start), step),)]
        else:
            x = x.index_select(axis, torch.arange(start, end, step) if start > end else torch.arange(0))
    return x


def _backwards(start: int, end: int, step: int, size: int) -> tuple[int, int, int]:
    """Python's own reading, but for an end at or below -size - 1, which means "to the front"."""
    start, stop, step = slice(start, end if end >= -size else None, step).indices(size)
    return start, stop, step


def _tile(_: OnnxNode, x: Tensor, repeats: Tensor, axis: Tensor | None = None) -> Tensor:
    if axis is not None:  # opsets below 6: tiles, axis
        (count,), (dim,) = integers(repeats, "tiles"), integers(axis, "axis")
        return x.repeat([count if place == dim else 1 for place in range(x.dim())])
    return x.repeat(integers(repeats, "repeats"))


def _pad(
    node: OnnxNode, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    widths = listed(node, "pads", pads) or node.get("paddings")
    if widths is None:
        raise OnnxError("its pads are missing")
    along = [axis_of(axis, x.dim()) for axis in integers(axes, "axes")] if axes is not None else list(range(x.dim()))
    before, behind = [0] * x.dim(), [0] * x.dim()
    for place, axis in enumerate(along):
        before[axis], behind[axis] = widths[place], widths[place + len(along)]
    mode = node.get("mode", "constant")
    if mode == "constant":
        fill = known(value, "value").item() if value is not None else node.get("value", 0.0)
        flat = [width for pair in reversed(list(zip(before, behind, strict=True))) for width in pair]
        return F.pad(x, flat, value=fill)
    for axis in range(x.dim()):
        if before[axis] or behind[axis]:
            x = x.index_select(axis, _padded(x.shape[axis], before[axis], behind[axis], mode))
    return x


def _padded(size: int, before: int, behind: int, mode: str) -> Tensor:
    """Which elements stand along a padded axis."""
    places = torch.arange(-before, size + behind)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    if mode != "reflect":
        raise OnnxError(f"a padding {mode!r} is not known here")
    period = max(2 * (size - 1), 1)
    places = places.remainder(period)
    return torch.minimum(places, period - places) if size > 1 else places * 0


def _shape(node: OnnxNode, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[slice(node.get("start", 0), node.get("end"))], dtype=torch.int64)


def _size(_: OnnxNode, x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


def _depth_to_space(node: OnnxNode, x: Tensor) -> Tensor:
    (batch, channels, height, width), block = x.shape, node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    x = x.reshape(batch, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, channels // block**2, height * block, width * block)


def _space_to_depth(node: OnnxNode, x: Tensor) -> Tensor:
    (batch, channels, height, width), block = x.shape, node.get("blocksize")
    x = x.reshape(batch, channels, height // block, block, width // block, block)
    x = x.permute(0, 1, 3, 5, 2, 4) if node.get("mode", "DCR") == "CRD" else x.permute(0, 3, 5, 1, 2, 4)
    return x.reshape(batch, channels * block**2, height // block, width // block)


def _triangle(node: OnnxNode, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    offset = integers(diagonal, "k")[0] if diagonal is not None else 0
    return torch.triu(x, offset) if node.get("upper", 1) else torch.tril(x, offset)


def _center(node: OnnxNode, x: Tensor, shape: Tensor) -> Tensor:
    sizes = integers(shape, "shape")
    for axis, size in zip(node.get("axes", range(x.dim())), sizes, strict=True):
        axis = axis_of(axis, x.dim())
        extra = size - x.shape[axis]
        if extra < 0:
            x = x.narrow(axis, -extra // 2, size)
        elif extra:
            x = F.pad(x, [0, 0] * (x.dim() - 1 - axis) + [extra // 2, extra - extra // 2])
    return x


SHAPES: dict[str, Handler] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Tile": _tile,
    "Pad": _pad,
    "Shape": _shape,
    "Size": _size,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Trilu": _triangle,
    "CenterCropPad": _center,
}
