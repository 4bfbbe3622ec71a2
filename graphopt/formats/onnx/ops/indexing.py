"""Reading and writing at places: Gather, Scatter and their kin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.ops.node import Handler, OnnxNode, axis_of, is_known, known


def _from_front(places: Tensor, size: int) -> Tensor:
    """Places from 0 on; raises OnnxError where one is known to be beyond."""
    if not is_known(places):
        return places.to(torch.int64) % size
    if places.numel() and not (-size <= int(places.min()) and int(places.max()) < size):
        raise OnnxError(f"places from {int(places.min())} to {int(places.max())} in {size}")
    if not bool((places < 0).any()):
        return places.to(torch.int64)
    return torch.where(places < 0, places + size, places).to(torch.int64)


def _gather(node: OnnxNode, x: Tensor, places: Tensor) -> Tensor:
    axis = axis_of(node.get("axis", 0), x.dim())
    places = _from_front(places, x.shape[axis])
    if is_known(places) and places.numel() == 1:
        part = x.narrow(axis, int(places.item()), 1)
        return part.reshape([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])
    if axis == 0 and x.dim() == 2 and x.dtype.is_floating_point:
        return F.embedding(places, x)
    chosen = x.index_select(axis, places.reshape(-1))
    return chosen.reshape([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])


def _gather_elements(node: OnnxNode, x: Tensor, places: Tensor) -> Tensor:
    axis = axis_of(node.get("axis", 0), x.dim())
    return x.gather(axis, _from_front(places, x.shape[axis]))


def _gather_nd(node: OnnxNode, x: Tensor, places: Tensor) -> Tensor:
    batch = node.get("batch_dims", 0)
    depth = places.shape[-1]
    index: list[Tensor] = []
    for dim in range(batch):
        index.append(torch.arange(x.shape[dim]).reshape([-1 if d == dim else 1 for d in range(places.dim() - 1)]))
    for place in range(depth):
        index.append(_from_front(places.select(-1, place), x.shape[batch + place]))
    chosen: Tensor = torch.ops.aten.index.Tensor(x, index)
    return chosen


def _scatter_elements(node: OnnxNode, x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    axis = axis_of(node.get("axis", 0), x.dim())
    places = _from_front(places, x.shape[axis])
    how = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}.get(node.get("reduction", "none"))
    if how is None:
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, how)


def _scatter_nd(node: OnnxNode, x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    reduction = node.get("reduction", "none")
    depth = places.shape[-1]
    index: list[Tensor | None] = [_from_front(places.select(-1, place), x.shape[place]) for place in range(depth)]
    if reduction in ("none", "add"):
        return x.index_put(index, updates, accumulate=reduction == "add")
    flat: Any = torch.zeros((), dtype=torch.int64)
    for place in range(depth):
        flat = flat * x.shape[place] + index[place]
    rest = x.shape[depth:]
    many = x.reshape(-1, *rest).flatten(1) if rest else x.reshape(-1, 1)
    rows = flat.reshape(-1, 1).expand(-1, many.shape[1])
    how = {"mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return many.scatter_reduce(0, rows, updates.reshape(rows.shape), how).reshape(x.shape)


def _one_hot(node: OnnxNode, places: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    size = int(known(depth, "depth").reshape(-1)[0].item())
    axis = axis_of(node.get("axis", -1), places.dim() + 1)
    if is_known(places):
        inside = (places >= -size) & (places < size)
        spots = torch.where(inside, places.to(torch.int64) % size, size)
    else:
        spots = places.to(torch.int64) % size
    hot = spots.unsqueeze(-1) == torch.arange(size)
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


def _reverse_sequence(node: OnnxNode, x: Tensor, lengths: Tensor) -> Tensor:
    time, batch = node.get("time_axis", 0), node.get("batch_axis", 1)
    steps = torch.arange(x.shape[time])
    ends = lengths.reshape(-1, 1)
    places = torch.where(steps < ends, ends - 1 - steps, steps)  # [batch, time]
    places = places if batch < time else places.transpose(0, 1)
    shape = [x.shape[dim] if dim in (time, batch) else 1 for dim in range(x.dim())]
    return x.gather(time, places.reshape(shape).expand(x.shape))


def _compress(node: OnnxNode, x: Tensor, condition: Tensor) -> Tensor:
    places = torch.nonzero(known(condition, "condition")).reshape(-1)
    axis = node.get("axis")
    return x.reshape(-1).index_select(0, places) if axis is None else x.index_select(axis, places)


def _non_zero(_: OnnxNode, x: Tensor) -> Tensor:
    return torch.nonzero(known(x, "result")).T.contiguous()


INDEXING: dict[str, Handler] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "OneHot": _one_hot,
    "ReverseSequence": _reverse_sequence,
    "Compress": _compress,
    "NonZero": _non_zero,
}
