"""Rows that are cut off behind a head (the last token of each sequence) are cut off in front of it.

`logits[:, :-1]` of a batch of sequences leaves rows that no longer follow one another as the head made them, so that
only whole sequences could be pieces. The same rows cut from the hidden states give the same logits, and in the backward
rows of zeros need no products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from graphopt.graph.joint import JointGraph
from graphopt.passes.joint.chunks.ops import is_tensor, name_of, shape_of
from graphopt.passes.joint.chunks.writing import Writer
from graphopt.passes.joint.skip_clones import look_again

aten = torch.ops.aten

_VIEWS = ("view", "_unsafe_view", "reshape")
_FORWARD = frozenset({*_VIEWS, "slice", "clone", "_to_copy"})
_BACKWARD = frozenset({*_VIEWS, "slice_backward", "clone", "_to_copy"})


@dataclass(frozen=True)
class _Cut:
    """A head, what leads from it to the rows that are left, and in the backward what leads from these to all rows."""

    product: fx.Node
    forward: tuple[fx.Node, ...]
    backward: tuple[fx.Node, ...]
    hidden: fx.Node

    @property
    def start(self) -> fx.Node:
        """The gradient of the rows that are left."""
        (source,) = self.backward[0].all_input_nodes
        return source


def hoist_cuts(joint: JointGraph) -> bool:
    """Cut rows in front of heads; True where there was one."""
    late = joint.backward_nodes()
    heads = [node for node in joint.graph.nodes if name_of(node) in ("mm", "addmm") and node not in late]
    found = [cut for cut in (_cut_behind(joint, node, late) for node in heads) if cut is not None]
    for cut in found:
        _rewrite(Writer(joint.graph), cut)
    return bool(found)


def _cut_behind(joint: JointGraph, product: fx.Node, late: set[fx.Node]) -> _Cut | None:
    """The cut behind a product, where all that its gradient is read for are the products of a linear layer."""
    hidden = product.args[-2]
    forward = _chain(product, _FORWARD, shape_of(product)[-1])
    if not isinstance(hidden, fx.Node) or not any(name_of(node) == "slice" for node in forward):
        return None
    for node in joint.graph.find_nodes(op="call_function", target=aten.mm.default):
        turned = node.args[0]
        if node not in late or node.args[1] is not hidden or name_of(turned) != "t":
            continue
        gradient = turned.args[0]
        backward = _chain_to(gradient, shape_of(product)[-1])
        same = [n.args[2:5] for n in backward if name_of(n) == "slice_backward"]
        cuts = [n.args[1:4] for n in forward if name_of(n) == "slice"]
        if same == cuts[::-1] and _may_go(gradient):
            return _Cut(product, forward, backward, hidden)
    return None


def _chain(node: fx.Node, names: frozenset[str], classes: int) -> tuple[fx.Node, ...]:
    """What follows a node, as long as each is read once and has the same last dimension, to the last matrix."""
    found: list[fx.Node] = []
    while len(node.users) == 1:
        (user,) = node.users
        if name_of(user) not in names or shape_of(user)[-1] != classes or not _leaves_last(user):
            break
        found.append(user)
        node = user
    while found and len(shape_of(found[-1])) != 2:
        found.pop()
    return tuple(found)


def _chain_to(gradient: fx.Node, classes: int) -> tuple[fx.Node, ...]:
    """What leads to a node from a matrix, through ops that are read once."""
    found: list[fx.Node] = []
    node = gradient
    while name_of(node) in _BACKWARD and shape_of(node)[-1] == classes and _leaves_last(node):
        (source,) = node.all_input_nodes
        if not is_tensor(source) or (node is not gradient and len(node.users) != 1):
            return ()
        found.append(node)
        node = source
    return tuple(reversed(found))


def _leaves_last(node: fx.Node) -> bool:
    """Whether a cut is along another dimension than the last, one row after the other."""
    name, of, args = name_of(node), len(shape_of(node)), cast(Any, node.args)
    if name == "slice":
        return len(args) == 4 and bool(args[1] % of != of - 1)
    return name != "slice_backward" or bool(args[2] % of != of - 1 and args[5] == 1)


def _may_go(gradient: fx.Node) -> bool:
    """Whether the gradient of all rows is read for the products of a linear layer and its bias alone."""
    for user in gradient.users:
        is_product = name_of(user) == "mm" and user.args[0] is gradient and user.args[1] is not gradient
        is_turned = name_of(user) == "t" and all(name_of(each) == "mm" and each.args[0] is user for each in user.users)
        is_sum = name_of(user) == "sum" and user.args[1:] == ([0], True)
        if not (is_product or is_turned or is_sum):
            return False
    return True


def _rewrite(writer: Writer, cut: _Cut) -> None:
    product, start, hidden = cut.product, cut.start, cut.hidden
    writer.begins_at(product)
    rows = _replayed(writer, cut.forward, hidden, shape_of(hidden)[-1])
    kept: fx.Node = writer.call(product.target, (*product.args[:-2], rows, product.args[-1]), product)
    kept = _cast(writer, cut.forward, kept)
    _replace(cut.forward[-1], kept)
    gradient = cut.backward[-1]
    writer.begins_at(gradient)
    start = _cast(writer, cut.backward, start)
    readers = [*gradient.users, *(each for user in gradient.users for each in user.users)]
    for user in list(gradient.users):
        if name_of(user) == "mm":
            some = writer.call(aten.mm.default, (start, user.args[1]), user)
            _replace(user, _replayed(writer, cut.backward, some, shape_of(user)[-1]))
        elif name_of(user) == "sum":
            _replace(user, writer.call(aten.sum.dim_IntList, (start, [0], True), user))
        else:
            turned = writer.call(aten.t.default, (start,), user)
            for each in list(user.users):
                right = rows if each.args[1] is hidden else each.args[1]
                assert right is rows, "a gradient of the weight is that of the head's own rows"
                _replace(each, writer.call(aten.mm.default, (turned, right), each))
    replaced = {product, *cut.forward, *cut.backward, *readers}
    for node in reversed(list(writer.graph.nodes)):
        if node in replaced and not node.users:
            writer.graph.erase_node(node)
    writer.put_in_order()


def _replayed(writer: Writer, chain: tuple[fx.Node, ...], node: fx.Node, width: int) -> fx.Node:
    """What views, cuts and their reverse make of rows of another width."""
    for each in chain:
        name = name_of(each)
        shape = [*shape_of(each)[:-1], width]
        if name in _VIEWS:
            node = writer.call(each.target, (_viewable(writer, node, shape), shape), each)
        elif name == "slice":
            node = writer.call(each.target, (node, *each.args[1:]), each)
        elif name == "slice_backward":
            node = writer.call(each.target, (node, shape, *each.args[2:]), each)
        elif name == "clone":
            node = writer.call(each.target, (node,), each, **each.kwargs)
    return node


def _viewable(writer: Writer, node: fx.Node, shape: list[int]) -> fx.Node:
    try:
        node.meta["val"].view(shape)
    except (RuntimeError, ValueError):  # of fake tensors the one or the other
        return writer.call(aten.clone.default, (node,), node, memory_format=torch.contiguous_format)
    return node


def _cast(writer: Writer, chain: tuple[fx.Node, ...], node: fx.Node) -> fx.Node:
    """The casts of a chain."""
    for each in chain:
        if name_of(each) == "_to_copy":
            node = writer.call(each.target, (node,), each, **each.kwargs)
    return node


def _replace(node: fx.Node, by: fx.Node) -> None:
    users = list(node.users)
    node.replace_all_uses_with(by)
    look_again(users)
