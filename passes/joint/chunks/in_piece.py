"""A node's call on a piece of its rows: the arguments that name sizes and dimensions of the whole are the piece's."""

from __future__ import annotations

from typing import Any

from torch import fx

from graphopt.passes.joint.chunks.ops import ALONG, MADE, REDUCING, name_of, reduced, shape_of
from graphopt.passes.joint.chunks.rows import Rows
from graphopt.passes.joint.chunks.rules import Sources, order_of

#: The position of an argument that names a dimension of the first input.
_DIMENSION = {"gather": 1, "scatter": 1, "scatter_add": 1, "slice": 1, "select": 1, **ALONG}


def arguments_in_piece(node: fx.Node, rows: Rows, needs: Sources, count: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of `node` for a piece of `count` rows, in terms of the nodes of the whole.

    Its result has rows at `rows`, its inputs at `needs`.
    """
    name = name_of(node)
    args: list[Any] = list(node.args)
    if not name:
        return node.args, dict(node.kwargs)
    source = node.args[0] if node.args else None
    theirs = needs.get(source) if isinstance(source, fx.Node) else None
    if name in ("view", "_unsafe_view", "reshape", "expand"):
        args[1] = rows.shape_in_piece(shape_of(node), count)
    elif name in MADE:
        args[MADE[name]] = rows.shape_in_piece(shape_of(node), count)
    elif name in ("slice_backward", "select_backward"):
        args[1] = rows.shape_in_piece(shape_of(node), count)
        args[2] = rows.in_piece(args[2], len(shape_of(node)))
    elif name == "unsqueeze":
        args[1] = rows.in_piece(args[1], len(shape_of(node)))
    elif theirs is not None and isinstance(source, fx.Node):
        _of_first_input(node, source, theirs, args)
    return tuple(args), dict(node.kwargs)


def reduced_in_piece(node: fx.Node, source: fx.Node, theirs: Rows) -> tuple[list[int], bool]:
    """The dimensions that a reduction takes together in a piece, those of rows once, and whether they stay."""
    dims, kept = reduced(node)
    of = len(shape_of(source))
    return list(dict.fromkeys(theirs.first if theirs.has(d, of) else theirs.in_piece(d, of) for d in dims)), kept


def _of_first_input(node: fx.Node, source: fx.Node, theirs: Rows, args: list[Any]) -> None:
    name, of = name_of(node), len(shape_of(source))
    if name in REDUCING and len(args) > 1 and args[1] is not None:
        dims, _ = reduced_in_piece(node, source, theirs)
        args[1] = dims[0] if isinstance(args[1], int) else dims
    elif name in _DIMENSION:
        at = _DIMENSION[name]
        if len(args) > at:
            args[at] = theirs.in_piece(args[at], of)
    elif name == "squeeze":
        dim = args[1]
        args[1] = theirs.in_piece(dim, of) if isinstance(dim, int) else [theirs.in_piece(d, of) for d in dim]
    elif name == "transpose":
        args[1:] = [theirs.first if theirs.has(d, of) else theirs.in_piece(d, of) for d in args[1:]]
    elif name == "permute":
        kept = [d for d in order_of(node) if not theirs.first < d < theirs.end]
        args[1] = [theirs.first if d == theirs.first else theirs.in_piece(d, of) for d in kept]
