"""CallKey: what tells one planned call from another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch.utils import _pytree as pytree

from graphopt.capture.check_tensors import check_inputs
from graphopt.device.storages import tensors_in

_NUMBERS_AND_TEXT = (bool, int, float, complex, str, type(None))

Call = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Shapes:
    """Shapes and types of a call's inputs: one object for all calls that are alike, so that telling is cheap."""

    kinds: tuple[object, ...]
    tree: pytree.TreeSpec

    @cached_property
    def has_only_leaves(self) -> bool:
        """Whether no tensor can be inside of an input that pytree takes for a leaf."""
        return all(isinstance(kind, tuple) or kind in _NUMBERS_AND_TEXT for kind in self.kinds)


@dataclass(frozen=True)
class CallKey:
    """Shapes and types of a call's inputs, and under which circumstances it was made.

    `adds`: gradients were there, to add to; `keeps`: they were there, and the backward returns its own beside them.
    `pattern`: the shapes of all forwards that together wait for one backward,
    where that is known. `behind`: others were waiting for theirs, and the pattern was not known.
    """

    shapes: Shapes
    adds: bool = False
    keeps: bool = False
    pattern: tuple[Shapes, ...] = ()
    behind: bool = False


class KnownShapes:
    """The shapes of calls, as long as somebody holds them."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[object, Shapes] = WeakValueDictionary()
        #: The same, of calls with nothing but tensors, by these: a tree's hash takes longer than all else.
        self._of_tensors: WeakValueDictionary[object, Shapes] = WeakValueDictionary()

    def of(self, call: Call) -> Shapes:
        """Those of a call. Raises CaptureError for a nested tensor of the kind that has no shape."""
        return self.and_tensors_of(call)[0]

    def and_tensors_of(self, call: Call) -> tuple[Shapes, list[torch.Tensor]]:
        """The same, and the tensors in it."""
        args, kwargs = call
        if kwargs or not all(type(each) is torch.Tensor and not each.is_nested for each in args):
            return self._of_any(call)
        kinds = tuple((each.shape, each.dtype, each.device, each.requires_grad) for each in args)
        known = self._of_tensors.get(kinds)
        if known is None:
            known = self._of_tensors[kinds] = self._of_any(call)[0]
        return known, list(args)

    def _of_any(self, call: Call) -> tuple[Shapes, list[torch.Tensor]]:
        leaves, tree = pytree.tree_flatten(call)
        if any(isinstance(leaf, torch.Tensor) and leaf.is_nested for leaf in leaves):
            check_inputs([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])
        kinds = tuple(
            (leaf.shape, leaf.dtype, leaf.device, leaf.requires_grad) if isinstance(leaf, torch.Tensor) else type(leaf)
            for leaf in leaves
        )
        known = self._known.get((kinds, tree))
        if known is None:
            known = self._known[kinds, tree] = Shapes(kinds, tree)
        if known.has_only_leaves:
            return known, [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return known, tensors_in(call)
