"""Pass: what was written into a part of a buffer, and is read from the same part, is read as it is.

`buffer[:, :n] = y; f(buffer[:, :n])` is in a functional graph a copy of the whole buffer at every write; eager has one
buffer. Where all that is read was written before in the same part, no buffer is needed at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphopt.graph.joint import JointGraph
from graphopt.passes.joint.skip_clones import look_again

aten = torch.ops.aten

_READS = {aten.slice_scatter.default: aten.slice.Tensor, aten.select_scatter.default: aten.select.int}
_BUFFERS = (
    *(aten.empty.memory_format, aten.new_empty.default, aten.empty_like.default, aten.full.default),
    *(aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default),
)

#: Each real element is rounded as IEEE 754 says, whatever the layout; sigmoid, exp2 or gelu are not, nor is `alpha=`.
#: Found by running all pointwise ops on parts of rows and on copies of them, three types and four shapes each, on a
#: CPU with torch 2.13.
EXACT = frozenset(
    (
        *(aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.neg.default, aten.abs.default),
        *(aten.maximum.default, aten.minimum.default, aten.relu.default, aten.where.self, aten._to_copy.default),
        *(aten.eq.Tensor, aten.ne.Tensor, aten.lt.Tensor, aten.le.Tensor, aten.gt.Tensor, aten.ge.Tensor),
    )
)
#: So are these, in 1,500 products of random sizes and four types, but for rows or columns of one element.
PRODUCTS = frozenset((aten.mm.default, aten.addmm.default))


def read_written_parts(joint: JointGraph) -> bool:
    """Replace reads of parts by what was written, where no reader's bits depend on the layout; True where one was."""
    changed = False
    for node in list(joint.graph.nodes):
        written = _written(node)
        if written is not None and _alike(node, written) and _may_be_read_elsewhere(node):
            written = _converted(joint.graph, node, written)
            readers = node.replace_all_uses_with(written, lambda user, node=node: not _writes_into(user, node))
            look_again(readers)
            changed = changed or bool(readers)
    if changed:
        joint.graph.eliminate_dead_code(_is_needed)
        joint.module.recompile()
    return changed


def _written(read: fx.Node) -> fx.Node | None:
    """What was written last into the very part that is read; None where that is not known."""
    source = read.args[0] if read.target in (*_READS.values(), aten.copy.default) else None
    if not isinstance(source, fx.Node):
        return None
    if read.target is aten.copy.default:
        copied = read.args[1]
        return copied if isinstance(copied, fx.Node) and source.target in _READS.values() else None
    whole = _written(source) or source if source.target in _READS.values() else source
    written = whole.args[1] if whole.target in _READS and _READS[whole.target] is read.target else None
    if not isinstance(written, fx.Node) or _place(read, 1) != _place(whole, 2):
        return None
    return written


def _place(node: fx.Node, first: int) -> tuple[object, ...]:
    """Dimension and range of a read or a write of a part, whose arguments begin at `first`."""
    value = node.all_input_nodes[0].meta["val"]
    given: list[Any] = list(node.args[first:])
    dimension, *numbers = given or [0]
    dimension %= value.dim()
    if node.target in (aten.select.int, aten.select_scatter.default):
        return dimension, numbers[0] % value.shape[dimension]
    defaults = (0, value.shape[dimension], 1)
    bounds = [d if n is None else n for n, d in zip((*numbers, None, None, None), defaults, strict=False)]
    start, stop, step = slice(*bounds).indices(value.shape[dimension])
    return dimension, start, stop, step


def _alike(read: fx.Node, written: fx.Node) -> bool:
    """Of one shape, and both laid out row by row; only what is copied is converted."""
    a, b = read.meta["val"], written.meta["val"]
    same_type = a.dtype == b.dtype or read.target is aten.copy.default
    return bool((a.shape, a.device) == (b.shape, b.device) and same_type and in_rows(a) and in_rows(b))


def _converted(graph: fx.Graph, read: fx.Node, written: fx.Node) -> fx.Node:
    """What was written, in the type that it is read in."""
    dtype = read.meta["val"].dtype
    if written.meta["val"].dtype == dtype:
        return written
    with graph.inserting_before(read):
        made = graph.call_function(aten._to_copy.default, (written,), {"dtype": dtype})
    made.meta = {**read.meta, "val": aten._to_copy.default(written.meta["val"], dtype=dtype)}
    return made


def _writes_into(user: fx.Node, node: fx.Node) -> bool:
    """Whether `user` writes into a part of the node: it then needs the node's own layout."""
    return user.target in (*_READS, aten.copy.default) and user.args[0] is node


def in_rows(value: torch.Tensor) -> bool:
    """Whether a tensor's dimensions lie in memory in their own order."""
    strides = [stride for stride, size in zip(value.stride(), value.shape, strict=True) if size > 1]
    return all(strides) and strides == sorted(strides, reverse=True)


def _may_be_read_elsewhere(read: fx.Node) -> bool:
    """Whether all that reads it, through views too, gives the same bits whatever the layout; writes into it stay."""
    value = read.meta["val"]
    is_matrix = value.dim() == 2 and min(value.shape) > 1 and value.stride(-1) == 1
    waiting = [(read, is_matrix)]
    while waiting:
        node, is_matrix = waiting.pop()
        for user in node.users:
            if user.target is aten.t.default:
                waiting.append((user, is_matrix))
            elif user.target in _READS.values():
                waiting.append((user, False))
            elif user.target in _READS or user.target is aten.copy.default:
                continue
            elif not _is_exact(user) and not (is_matrix and user.target in PRODUCTS and node in user.args[-2:]):
                return False
    return True


def _is_exact(node: fx.Node) -> bool:
    return node.target in EXACT and not node.meta["val"].is_complex() and "alpha" not in node.kwargs


def _is_needed(node: fx.Node) -> bool:
    """Whether it must stay even if nobody reads it: all but buffers, and what is written to them and read from them."""
    is_read = isinstance(node.target, torch._ops.OpOverload) and node.target.is_view
    return not (is_read or node.target in (*_BUFFERS, *_READS, aten.copy.default))
