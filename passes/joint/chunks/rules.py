"""How rows go through an operator: which rows of its inputs a row of its result is made of, and nothing else.

Every rule is a function of the node and of where its result has its rows. It says where its inputs have them; an input
that it leaves out is read whole for each row. None: a row is made of other rows, or nobody knows.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import fx

from graphopt.passes.joint.chunks.ops import (
    ALONG,
    MADE,
    REDUCING,
    given,
    is_elementwise,
    is_tensor,
    name_of,
    reduced,
    shape_of,
)
from graphopt.passes.joint.chunks.rows import Rows, rows_in_view

#: Where the inputs of a node have their rows.
Sources = Mapping[fx.Node, Rows]
Rule = Callable[[fx.Node, Rows], Sources | None]


def sources(node: fx.Node, rows: Rows, total: int) -> Sources | None:
    """Where the inputs of `node` have the rows that its result has at `rows`; None where no rule knows."""
    name = name_of(node)
    if node.op != "call_function" or (not name and node.target is not operator.getitem):
        return None
    if is_elementwise(node) or name == "where":
        return _elementwise(node, rows)
    if name in ("view", "_unsafe_view", "reshape"):
        return _view(node, rows, total)
    return next((rule(node, rows) for names, rule in _RULES if name in names), None)


def _elementwise(node: fx.Node, rows: Rows) -> Sources | None:
    found: dict[fx.Node, Rows] = {}
    shape = shape_of(node)
    for source in node.all_input_nodes:
        if not is_tensor(source):
            return None
        theirs = shape_of(source)
        missing = len(shape) - len(theirs)
        own = [theirs[d - missing] if d >= missing else 1 for d in range(rows.first, rows.end)]
        if all(size == 1 for size in own) and not all(size == 1 for size in shape[rows.first : rows.end]):
            if rows.count > 1 and missing < rows.end:
                return None  # in a piece these dimensions are one
            continue
        if own != list(shape[rows.first : rows.end]) or rows.first < missing:
            return None
        found[source] = rows.moved(-missing)
    return found


def _along(node: fx.Node, rows: Rows) -> Sources | None:
    dimension = node.args[ALONG[name_of(node)]]
    assert isinstance(dimension, int)
    if rows.has(dimension, len(shape_of(node))):
        return None
    return dict.fromkeys(node.all_input_nodes, rows)


def _reducing(node: fx.Node, rows: Rows) -> Sources | None:
    (source,) = node.all_input_nodes
    dims, kept = reduced(node)
    at = [d for d in range(len(shape_of(source))) if kept or d not in dims]
    where = at[rows.first : rows.end]
    if any(d in dims for d in where) or where != list(range(where[0], where[0] + len(where))):
        return None
    return {source: Rows(where[0], rows.count, rows.each)}


def _view(node: fx.Node, rows: Rows, total: int) -> Sources | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before = rows_in_view(rows, total, shape_of(node), shape_of(source))
    # the other way must lead back, else the two have other dimensions in front of the rows
    if before is None or rows_in_view(before, total, shape_of(source), shape_of(node)) != rows:
        return None
    return {source: before}


def _unsqueeze(node: fx.Node, rows: Rows) -> Sources | None:
    source, dimension = node.args[:2]
    assert isinstance(source, fx.Node) and isinstance(dimension, int)
    dimension %= len(shape_of(node))
    if rows.first <= dimension < rows.end:
        return None
    return {source: rows.moved(-1) if dimension < rows.first else rows}


def _squeeze(node: fx.Node, rows: Rows) -> Sources | None:
    source, dims = node.args[0], node.args[1] if len(node.args) > 1 else None
    if not isinstance(source, fx.Node) or dims is None:
        return None
    shape = shape_of(source)
    gone = {d % len(shape) for d in ([dims] if isinstance(dims, int) else dims) if shape[d] == 1}  # type: ignore
    at = [d for d in range(len(shape)) if d not in gone][rows.first : rows.end]
    return {source: Rows(at[0], rows.count, rows.each)} if at == list(range(at[0], at[0] + len(at))) else None


def _permuted(node: fx.Node, rows: Rows) -> Sources | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    at = order_of(node)[rows.first : rows.end]
    return {source: Rows(at[0], rows.count, rows.each)} if at == list(range(at[0], at[0] + len(at))) else None


def order_of(node: fx.Node) -> list[int]:
    """Of `t`, `transpose` and `permute`: which of its input's dimensions each dimension is."""
    of, args = len(shape_of(node)), cast(Any, node.args)
    order = list(range(of))
    if name_of(node) == "permute":
        return [d % of for d in args[1]]
    one, other = (0, of - 1) if name_of(node) == "t" else (args[1] % of, args[2] % of)
    order[one], order[other] = order[other], order[one]
    return order


def _expand(node: fx.Node, rows: Rows) -> Sources | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape, theirs = shape_of(node), shape_of(source)
    missing = len(shape) - len(theirs)
    own = [theirs[d - missing] if d >= missing else 1 for d in range(rows.first, rows.end)]
    if all(size == 1 for size in own):
        # in a piece these dimensions are one: what has several of one element would have to lose some
        return {} if rows.count == 1 or missing >= rows.end else None
    return {source: rows.moved(-missing)} if own == list(shape[rows.first : rows.end]) else None


def _cut(node: fx.Node, rows: Rows) -> Sources | None:
    """A part of a tensor, or a tensor of zeros but for a part of it, along another dimension."""
    source, dimension = node.args[0], given(node)["dim"]
    assert isinstance(source, fx.Node)
    is_backward, drops = name_of(node).endswith("_backward"), name_of(node).startswith("select")
    of = len(shape_of(node if is_backward else source))
    dimension %= of
    if not drops:
        return None if rows.has(dimension, of) else {source: rows}
    if is_backward:  # the result has the dimension, the input has not
        return None if rows.has(dimension, of) else {source: rows.moved(-1) if dimension < rows.first else rows}
    if rows.first < dimension < rows.end:
        return None
    return {source: rows.moved(1) if dimension <= rows.first else rows}


def _made(_node: fx.Node, _rows: Rows) -> Sources | None:
    return {}


def _indexed(node: fx.Node, rows: Rows) -> Sources | None:
    """`gather` and its kin: along one dimension elements are taken from where an index says."""
    dimension = node.args[1]
    assert isinstance(dimension, int)
    if rows.has(dimension, len(shape_of(node))):
        return None
    shape = shape_of(node)[rows.first : rows.end]
    alike = all(shape_of(source)[rows.first : rows.end] == shape for source in node.all_input_nodes)
    return dict.fromkeys(node.all_input_nodes, rows) if alike else None


def _product(node: fx.Node, rows: Rows) -> Sources | None:
    beside, left, right = (None, *node.args[:2]) if name_of(node) == "mm" else node.args[:3]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
    if left is right:
        return None
    found = {left: rows} if rows.first == 0 else {right: rows}
    if isinstance(beside, fx.Node):
        if len(shape_of(beside)) == 2 and shape_of(beside)[rows.first] != 1:
            found[beside] = rows
        elif len(shape_of(beside)) == 1 and rows.first == 1 and shape_of(beside)[0] != 1:
            found[beside] = rows.moved(-1)
    return found


def _products(node: fx.Node, rows: Rows) -> Sources | None:
    """A stack of products: rows are some of them, or rows of each on the left, or columns of each on the right."""
    beside, left, right = (None, *node.args[:2]) if name_of(node) == "bmm" else node.args[:3]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
    if rows.count != 1 or (left is right and rows.first != 0):
        return None
    read = ((left, right), (left,), (right,))[rows.first]
    if isinstance(beside, fx.Node):
        if shape_of(beside) != shape_of(node):
            return None
        read = (*read, beside)
    return dict.fromkeys(read, rows)


def _loss(node: fx.Node, rows: Rows) -> Sources | None:
    """What `nll_loss` gives for each row; of its backward, a row of the gradient."""
    named = given(node)
    scores, target, gradient = named["self"], named["target"], named.get("grad_output")
    if len(shape_of(scores)) != 2 or rows.first != 0:
        return None
    found = {scores: Rows(0, 1, rows.each), target: Rows(0, 1, rows.each)}
    if gradient is not None and len(shape_of(gradient)) == 1:
        found[gradient] = Rows(0, 1, rows.each)
    return found


def _part(node: fx.Node, rows: Rows) -> Sources | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return {source: rows} if name_of(source) == "nll_loss_forward" and node.args[1] == 0 else None


_RULES: tuple[tuple[frozenset[str], Rule], ...] = (
    (frozenset(ALONG), _along),
    (REDUCING, _reducing),
    (frozenset(("unsqueeze",)), _unsqueeze),
    (frozenset(("squeeze",)), _squeeze),
    (frozenset(("t", "transpose", "permute")), _permuted),
    (frozenset(("expand",)), _expand),
    (frozenset(("slice", "select", "slice_backward", "select_backward")), _cut),
    (frozenset(MADE), _made),
    (frozenset(("gather", "scatter", "scatter_add")), _indexed),
    (frozenset(("mm", "addmm")), _product),
    (frozenset(("bmm", "baddbmm")), _products),
    (frozenset(("nll_loss_forward", "nll_loss_backward")), _loss),
    (frozenset(("",)), _part),
)
