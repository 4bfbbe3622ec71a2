"""CallKey: what tells one planned call from another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from graphopt.capture.check_tensors import check_inputs

Call = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True)
class CallKey:
    """Shapes and types of a call's inputs, and under which circumstances it was made.

    `adds`: gradients were there, to add to; `keeps`: they were there, and the backward returns its own beside them.
    `pattern`: the shapes of all forwards that together wait for one backward,
    where that is known. `behind`: others were waiting for theirs, and the pattern was not known.
    """

    shapes: object
    adds: bool = False
    keeps: bool = False
    pattern: tuple[object, ...] = ()
    behind: bool = False


def shapes_of(call: Call) -> object:
    """Shapes and types of a call, cheaply. Raises CaptureError for a nested tensor of the kind that has no shape."""
    leaves, tree = pytree.tree_flatten(call)
    if any(isinstance(leaf, torch.Tensor) and leaf.is_nested for leaf in leaves):
        check_inputs([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])
    kinds = tuple(
        (leaf.shape, leaf.dtype, leaf.device, leaf.requires_grad) if isinstance(leaf, torch.Tensor) else type(leaf)
        for leaf in leaves
    )
    return kinds, tree
