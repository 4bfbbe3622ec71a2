"""Ops whose result is a sum over all rows, so that it can be added up piece by piece."""

from __future__ import annotations

import operator

from torch import fx

from graphopt.passes.joint.chunks.ops import REDUCING, given, name_of, reduced, shape_of
from graphopt.passes.joint.chunks.rows import Rows
from graphopt.passes.joint.chunks.rules import Sources

#: Of `nll_loss_forward`: a loss for each row.
NO_REDUCTION = 0
_OVER_ALL = (1, 2)
#: Products of two matrices, or of each two of a stack.
PRODUCTS = ("mm", "bmm")


def summands(node: fx.Node, source: fx.Node, rows: Rows) -> Sources | None:
    """Where the inputs of a sum over the rows of `source` have them; None where `node` is no such sum."""
    name = name_of(node)
    if name in PRODUCTS:
        left, right = node.args[:2]
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        of = len(shape_of(node))
        found = {left: Rows(of - 1, 1, rows.each), right: Rows(of - 2, 1, rows.each)}
        return found if left is not right and found.get(source) == rows else None
    if name in ("sum", "mean") and name in REDUCING:
        dims, _ = reduced(node)
        return {source: rows} if set(range(rows.first, rows.end)) <= set(dims) else None
    if is_reduced_loss(node):
        named = given(node)
        scores, target = named["self"], named["target"]
        is_plain = len(shape_of(scores)) == 2 and rows == Rows(0, 1, rows.each)
        return {scores: rows, target: rows} if is_plain and source in (scores, target) else None
    return None


def is_reduced_loss(node: fx.Node) -> bool:
    """Whether it is a loss of classes, summed up or averaged."""
    return name_of(node) == "nll_loss_forward" and bool(given(node)["reduction"] in _OVER_ALL)


def is_weight_of_loss(node: fx.Node) -> bool:
    """Whether it is the weight of all rows of a loss together, which does not depend on scores."""
    source = node.args[0] if node.target is operator.getitem else None
    return isinstance(source, fx.Node) and name_of(source) == "nll_loss_forward" and bool(node.args[1] == 1)
