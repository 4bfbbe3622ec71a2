"""Resize and Upsample: torch's own kernels where they compute the same, else one product an axis with known weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.ops.node import Handler, OnnxNode, integers, listed, numbers

#: Axis, its new size, its scale, and its part of the region of interest.
Axis = tuple[int, int, float, tuple[float, float]]


#: Elements of the matrix that resizes one axis.
_MOST_WEIGHTS = 2**24


def _upsample(node: OnnxNode, x: Tensor, scales: Tensor | None = None) -> Tensor:
    factors = numbers(scales, "scales") if scales is not None else node.get("scales")
    if factors is None:  # opsets below 7
        factors = [1.0, 1.0, node.get("height_scale"), node.get("width_scale")]
    axes = [(axis, math.floor(x.shape[axis] * f), f, (0.0, 1.0)) for axis, f in enumerate(factors) if f != 1]
    mode = node.get("mode", "nearest")
    return _resized(node, x, axes, "linear" if mode.endswith("linear") else mode, "asymmetric", "floor")


def _resize(
    node: OnnxNode, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    if node.opset < 11:  # X, scales
        return _upsample(node, x, roi)
    along = [axis % x.dim() for axis in listed(node, "axes", None, list(range(x.dim()))) or []]
    if scales is not None and scales.numel():
        factors = numbers(scales, "scales")
        new = [math.floor(x.shape[axis] * factor) for axis, factor in zip(along, factors, strict=True)]
    else:
        new = integers(sizes, "sizes")
        if node.batch is not None and along[:1] == [0] and new[0] == node.batch[0] and x.shape[0] == node.batch[1]:
            new[0] = node.batch[1]  # a batch is never resized: the file's own stands there
        factors = [size / x.shape[axis] for axis, size in zip(along, new, strict=True)]
        factors, new = _with_policy(node, x, along, factors, new)
    region = numbers(roi, "roi") if roi is not None and roi.numel() else [0.0] * len(along) + [1.0] * len(along)
    axes = [
        (axis, new[place], factors[place], (region[place], region[place + len(along)]))
        for place, axis in enumerate(along)
        if factors[place] != 1 or node.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    ]
    place = node.get("coordinate_transformation_mode", "half_pixel")
    return _resized(node, x, axes, node.get("mode", "nearest"), place, node.get("nearest_mode", "round_prefer_floor"))


def _with_policy(
    node: OnnxNode, x: Tensor, along: list[int], factors: list[float], new: list[int]
) -> tuple[list[float], list[int]]:
    """Scales and sizes where the ratio of height and width stays."""
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return factors, new
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [factor] * len(along), [math.floor(x.shape[axis] * factor + 0.5) for axis in along]


def _resized(node: OnnxNode, x: Tensor, axes: list[Axis], mode: str, place: str, nearest: str) -> Tensor:
    if not axes:
        return x
    if not node.get("antialias", 0) and not node.get("exclude_outside", 0):
        found = _by_torch(node, x, axes, mode, place, nearest)
        if found is not None:
            return found
    if any(size * max(1, x.shape[axis]) > _MOST_WEIGHTS for axis, size, *_ in axes):
        raise OnnxError(f"sizes {[size for _, size, *_ in axes]} in this mode are too large")
    outside: Any = None
    for axis, size, scale, region in axes:
        places = [_origin(number, size, scale, x.shape[axis], place, region) for number in range(size)]
        if place == "tf_crop_and_resize":
            beyond = torch.tensor([not 0 <= p <= x.shape[axis] - 1 for p in places])
            beyond = beyond.reshape(-1, *[1] * (x.dim() - 1 - axis))
            outside = beyond if outside is None else outside | beyond
        if mode == "nearest":
            x = x.index_select(axis, torch.tensor([_nearest(p, nearest, x.shape[axis]) for p in places]))
        else:
            weights = torch.stack([_row(node, p, scale, x.shape[axis], mode) for p in places]).to(x.dtype)
            x = torch.matmul(x.movedim(axis, -1), weights.T).movedim(-1, axis)
    if outside is not None and bool(outside.any()):
        x = x.masked_fill(outside, node.get("extrapolation_value", 0.0))
    return x


def _by_torch(node: OnnxNode, x: Tensor, axes: list[Axis], mode: str, place: str, nearest: str) -> Tensor | None:
    """torch's kernel, where it exists for this mode: batch and channels stay, and places are counted as torch does."""
    spatial = list(range(2, x.dim()))
    if not 1 <= len(spatial) <= 3 or not {axis for axis, *_ in axes} <= set(spatial) or not x.dtype.is_floating_point:
        return None
    new = list(x.shape[2:])
    for axis, size, scale, _ in axes:
        if size != x.shape[axis] * scale:
            return None
        new[axis - 2] = size
    if mode == "nearest":
        whole = all(scale == int(scale) for _, _, scale, _ in axes)
        same = (place == "asymmetric" and nearest == "floor") or (
            whole and place in ("half_pixel", "pytorch_half_pixel") and nearest.startswith("round")
        )
        return F.interpolate(x, new, mode="nearest") if whole and same else None
    if mode == "cubic" and (len(spatial) != 2 or node.get("cubic_coeff_a", -0.75) != -0.75):
        return None
    kind = "bicubic" if mode == "cubic" else ("linear", "bilinear", "trilinear")[len(spatial) - 1]
    if place == "align_corners" and all(size > 1 for _, size, _, _ in axes):
        return F.interpolate(x, new, mode=kind, align_corners=True)
    if place in ("half_pixel", "pytorch_half_pixel") and all(size > 1 for _, size, _, _ in axes):
        return F.interpolate(x, new, mode=kind, align_corners=False)
    return None


def _origin(number: int, size: int, scale: float, old: int, place: str, region: tuple[float, float]) -> float:
    """Where in the input an output element stands."""
    length = scale * old
    if place == "align_corners":
        return 0.0 if length == 1 else number * (old - 1) / (length - 1)
    if place == "asymmetric":
        return number / scale
    if place == "tf_crop_and_resize":
        start, end = region
        if length == 1:
            return (end - start) * (old - 1) / 2 + start * (old - 1)
        return number * (end - start) * (old - 1) / (size - 1 if size > 1 else 1) + start * (old - 1)
    middle = (number + 0.5) / scale - 0.5
    if place == "pytorch_half_pixel":
        return -0.5 if size == 1 else middle
    if place == "half_pixel_symmetric":
        return old / 2 * (1 - size / length) + middle
    if place == "half_pixel":
        return middle
    raise OnnxError(f"coordinate_transformation_mode {place!r} is not known here")


def _nearest(place: float, mode: str, size: int) -> int:
    down = math.floor(place)
    part = place - down
    up = {"floor": False, "ceil": part > 0, "round_prefer_floor": part > 0.5, "round_prefer_ceil": part >= 0.5}
    if mode not in up:
        raise OnnxError(f"nearest_mode {mode!r} is not known here")
    return min(max(down + up[mode], 0), size - 1)


def _row(node: OnnxNode, place: float, scale: float, size: int, mode: str) -> Tensor:
    """The weights, one an input element, that make one output element."""
    shrink = min(scale, 1.0) if node.get("antialias", 0) else 1.0
    reach = {"linear": 1.0, "cubic": 2.0}.get(mode)
    if reach is None:
        raise OnnxError(f"mode {mode!r} is not known here")
    first = math.floor(place - reach / shrink) + 1
    last = math.ceil(place + reach / shrink) - 1
    near = range(min(first, math.floor(place)), max(last, math.floor(place)) + 1)
    weights = [_kernel(abs(other - place) * shrink, mode, node.get("cubic_coeff_a", -0.75)) for other in near]
    if node.get("exclude_outside", 0):
        weights = [w if 0 <= other < size else 0.0 for w, other in zip(weights, near, strict=True)]
    total = sum(weights) if node.get("exclude_outside", 0) or node.get("antialias", 0) else 1.0
    row = torch.zeros(size, dtype=torch.float64)
    for weight, other in zip(weights, near, strict=True):
        row[min(max(other, 0), size - 1)] += weight / total
    return row


def _kernel(distance: float, mode: str, a: float) -> float:
    if mode == "linear":
        return max(0.0, 1 - distance)
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance * distance + 1
    if distance < 2:
        return ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return 0.0


def _grid_sample(node: OnnxNode, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "linear"), node.get("mode", "linear"))
    padding, corners = node.get("padding_mode", "zeros"), bool(node.get("align_corners", 0))
    return F.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=corners)


def _affine_grid(node: OnnxNode, theta: Tensor, size: Tensor) -> Tensor:
    return F.affine_grid(theta, integers(size, "size"), align_corners=bool(node.get("align_corners", 0)))


RESIZING: dict[str, Handler] = {
    "Upsample": _upsample,
    "Resize": _resize,
    "GridSample": _grid_sample,
    "AffineGrid": _affine_grid,
}
