"""A window: one global batch cut into micro-batches, each with its weight in the mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from graphopt.base.errors import UsageError

#: "rows": a micro-batch counts by its rows; "tokens": by its targets that are not IGNORED; or a function of it.
Weights = str | Callable[..., float] | None
#: What PyTorch's losses ignore by default.
IGNORED = -100


@dataclass(frozen=True)
class MicroBatch:
    """Arguments of one micro-batch, views of the global batch's tensors.

    `weight` is what it counts, or its share of the mean.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    weight: float


def rows_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """The batch's size: dimension 0 of its first tensor. Raises UsageError where there is none."""
    for leaf in pytree.tree_leaves((args, dict(kwargs))):
        if isinstance(leaf, torch.Tensor) and leaf.ndim > 0:
            return int(leaf.shape[0])
    raise UsageError("the batch holds no tensor with a first dimension: nothing to cut into micro-batches")


def cut(args: tuple[Any, ...], kwargs: Mapping[str, Any], micro_rows: int, weights: Weights) -> list[MicroBatch]:
    """Cut a batch along dimension 0 into micro-batches of `micro_rows`, the last one maybe shorter.

    Cut are the tensors whose first dimension is the batch's; everything else goes whole to each. A
    micro-batch that weighs nothing is left out, as its loss, a mean over nothing, would be NaN; the list
    is empty where all of them are. Raises UsageError for weights that are no finite numbers of at least 0.
    """
    rows = rows_of(args, kwargs)
    parts = [_rows(args, kwargs, rows, first, min(micro_rows, rows - first)) for first in range(0, rows, micro_rows)]
    counts = [_count(part, weights) for part in parts]
    return [
        MicroBatch(args, kwargs, count) for (args, kwargs, _), count in zip(parts, counts, strict=True) if count > 0
    ]


def weight_of(pieces: Iterable[MicroBatch]) -> float:
    """What they count together."""
    return sum((piece.weight for piece in pieces), 0.0)


def as_shares(pieces: Sequence[MicroBatch], total: float) -> list[MicroBatch]:
    """Their weights as shares of `total`."""
    return [replace(piece, weight=piece.weight / total) for piece in pieces]


def _rows(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: int, first: int, count: int
) -> tuple[tuple[Any, ...], dict[str, Any], int]:
    def take(leaf: Any) -> Any:
        is_cut = isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == rows and count < rows
        return leaf.narrow(0, first, count) if is_cut else leaf

    cut_args, cut_kwargs = pytree.tree_map(take, (args, dict(kwargs)))
    return cut_args, cut_kwargs, count


def _count(part: tuple[tuple[Any, ...], dict[str, Any], int], weights: Weights) -> float:
    args, kwargs, rows = part
    if callable(weights):
        weight = float(weights(*args, **kwargs))
    elif weights == "tokens":
        weight = float((_target(args, kwargs) != IGNORED).sum())
    elif weights in (None, "rows"):
        weight = float(rows)
    else:
        raise UsageError(f"weights: expected 'rows', 'tokens' or a function of a micro-batch, got {weights!r}")
    if not 0 <= weight < float("inf"):
        raise UsageError(f"weights: a micro-batch cannot weigh {weight}; expected a finite number of at least 0")
    return weight


def _target(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    target = kwargs.get("labels", args[-1] if args else None)
    if not isinstance(target, torch.Tensor) or target.is_floating_point():
        raise UsageError("weights='tokens' counts integer targets: the last input, or the keyword input 'labels'")
    return target
