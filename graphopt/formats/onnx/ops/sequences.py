"""Lists of tensors, as exporters write a split whose parts are then taken one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.ops.node import Handler, OnnxNode, axis_of, integers

_MOST_PARTS = 2**16


def _split(node: OnnxNode, x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
    axis = axis_of(node.get("axis", 0), x.dim())
    if x.shape[axis] > _MOST_PARTS:
        raise OnnxError(f"{x.shape[axis]} parts, where {_MOST_PARTS} may be")
    if sizes is None:
        parts = list(x.split(1, axis))
        return parts if node.get("keepdims", 1) else [part.squeeze(axis) for part in parts]
    given = integers(sizes, "split")
    return list(x.split(given[0] if sizes.dim() == 0 else given, axis))


def _at(_: OnnxNode, parts: list[Tensor], place: Tensor) -> Tensor:
    (number,) = integers(place, "position")
    if not -len(parts) <= number < len(parts):
        raise OnnxError(f"part {number} of {len(parts)}")
    return parts[number]


def _construct(_: OnnxNode, *parts: Tensor) -> list[Tensor]:
    return list(parts)


def _length(_: OnnxNode, parts: list[Tensor]) -> Tensor:
    return torch.tensor(len(parts))


def _concat(node: OnnxNode, parts: list[Tensor]) -> Any:
    axis = node.get("axis")
    return torch.stack(parts, axis) if node.get("new_axis", 0) else torch.cat(parts, axis)


SEQUENCES: dict[str, Handler] = {
    "SplitToSequence": _split,
    "SequenceAt": _at,
    "SequenceConstruct": _construct,
    "SequenceLength": _length,
    "ConcatFromSequence": _concat,
}
