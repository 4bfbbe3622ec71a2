"""A sum over all rows, added up piece by piece.

In the backward, where weights get their gradients, the sum of the first piece is added to in place: a second tensor
of the weight's size never exists but for half precision, whose sums are made in float32 and rounded once at the end.
In the forward each sum so far is a new value, so that it can be recomputed.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from graphopt.device.dtypes import HALF
from graphopt.graph.roles import RUN_ONCE
from graphopt.passes.joint.chunks.in_piece import reduced_in_piece
from graphopt.passes.joint.chunks.ops import given, name_of, reduced, shape_of, tensor
from graphopt.passes.joint.chunks.rows import Rows
from graphopt.passes.joint.chunks.writing import Writer

aten = torch.ops.aten
#: Of products those that add theirs to another value, in place and as a new one.
_ADDING = {
    "mm": (aten.addmm_.default, aten.addmm.default),
    "bmm": (aten.baddbmm_.default, aten.baddbmm.default),
}


class AddedUp:
    """The sum that `node` is, while its pieces are being written; `in_place` says whether it is added to in place."""

    def __init__(self, writer: Writer, node: fx.Node, *, in_place: bool) -> None:
        self._writer, self._node, self._in_place = writer, node, in_place
        self._sum: fx.Node | None = None

    def add_product(self, left: fx.Node, right: fx.Node) -> None:
        """Add the product of a piece of both."""
        if self._sum is None or tensor(self._sum).dtype != tensor(left).dtype:
            self._add(self._writer.call(self._node.target, (left, right), self._node))
            return
        in_place, new = _ADDING[name_of(self._node)]
        target = in_place if self._in_place else new
        self._sum = self._writer.call(target, (self._sum, left, right), self._node)

    def add_reduced(self, source: fx.Node, piece: fx.Node, rows: Rows) -> None:
        """Add what a piece of `source` comes to."""
        dims, kept = reduced_in_piece(self._node, source, rows)
        dtype = {"dtype": given(self._node).get("dtype")} if given(self._node).get("dtype") else {}
        part = self._writer.call(aten.sum.dim_IntList, (piece, dims, kept), self._node, **dtype)
        shape = shape_of(self._node)
        if shape_of(part) != shape:  # several dimensions of rows are one in a piece
            part = self._writer.call(aten.view.default, (part, list(shape)), self._node)
        self._add(part)

    def whole(self) -> fx.Node:
        """The sum over all rows."""
        assert self._sum is not None
        total, node = self._sum, self._node
        if name_of(node) == "mean":
            (source,) = node.all_input_nodes
            count = math.prod(shape_of(source)[d] for d in reduced(node)[0])
            total = self._writer.call(aten.div.Scalar, (total, count), node)
        if tensor(total).dtype != tensor(node).dtype:
            total = self._writer.call(aten._to_copy.default, (total,), node, dtype=tensor(node).dtype)
        return total

    def _add(self, part: fx.Node) -> None:
        if self._sum is not None:
            target = aten.add_.Tensor if self._in_place else aten.add.Tensor
            self._sum = self._writer.call(target, (self._sum, part), self._node)
            return
        if tensor(part).dtype in HALF:
            part = self._writer.call(aten._to_copy.default, (part,), self._node, dtype=torch.float32)
        if self._in_place:
            part.meta[RUN_ONCE] = True
        self._sum = part
