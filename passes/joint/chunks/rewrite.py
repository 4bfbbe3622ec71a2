"""A region of a joint graph rewritten to run in pieces of its rows, so that none of its large values is ever whole."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from graphopt.graph.joint import JointGraph
from graphopt.graph.roles import RUN_ONCE
from graphopt.passes.joint.chunks.added_up import AddedUp
from graphopt.passes.joint.chunks.at_once import AtOnce, move_into_forward
from graphopt.passes.joint.chunks.in_piece import arguments_in_piece
from graphopt.passes.joint.chunks.levels import levels
from graphopt.passes.joint.chunks.losses import loss_of_rows, weight_of_rows
from graphopt.passes.joint.chunks.ops import given, is_tensor, name_of, shape_of
from graphopt.passes.joint.chunks.region import RowRegion
from graphopt.passes.joint.chunks.rows import Rows
from graphopt.passes.joint.chunks.rules import Sources, sources
from graphopt.passes.joint.chunks.sums import NO_REDUCTION, PRODUCTS, is_reduced_loss, is_weight_of_loss
from graphopt.passes.joint.chunks.write_rows import write_rows_
from graphopt.passes.joint.chunks.writing import Writer, users_outside
from graphopt.passes.joint.skip_clones import look_again

aten = torch.ops.aten


def rewrite(
    joint: JointGraph, region: RowRegion, pieces: int, early: AtOnce | None = None, *, tangent_is_known: bool = False
) -> Mapping[fx.Node, fx.Node]:
    """Run `region` in so many pieces of its rows, or one for each row where there are fewer; what replaced its nodes.

    Each pass over the pieces makes all of one before the next; with `early` there is one pass for forward and backward.
    Rows that come out are put together: those of the backward are written to one buffer. Sums are added up.
    """
    late = joint.backward_nodes()
    number = levels(joint.graph, region, late if early is None else frozenset())
    if early is not None:
        region = move_into_forward(joint, region, early, tangent_is_known=tangent_is_known)
    rewriting = _Rewriting(region, Writer(joint.graph), bounds(region.total, pieces), late)
    for level in sorted(set(number.values())):
        rewriting.run_pass([node for node in region.nodes if number[node] == level])
    if early is not None and not tangent_is_known:
        rewriting.multiply_by(early.tangent)
    rewriting.finish()
    return rewriting.whole


def bounds(total: int, pieces: int) -> list[tuple[int, int]]:
    """First row of each piece and that behind its last, the longest pieces first."""
    pieces = min(pieces, total)
    longer, size = total % pieces, total // pieces
    starts = [i * size + min(i, longer) for i in range(pieces + 1)]
    return list(pairwise(starts))


def _looks_alike(node: fx.Node, args: Sequence[Any]) -> bool:
    """Whether it is a view that shows of a piece what is there: dimensions that it divides are one in a piece."""
    name = name_of(node)
    if name in ("view", "_unsafe_view", "reshape"):
        return list(shape_of(args[0])) == list(args[1])
    return name in ("detach", "alias")


@dataclass
class _Rewriting:
    """What is written so far: of each piece the nodes of the region, and of its results those that are whole."""

    region: RowRegion
    writer: Writer
    bounds: list[tuple[int, int]]
    late: Set[fx.Node]
    made: dict[tuple[fx.Node, int], fx.Node] = field(default_factory=dict)
    whole: dict[fx.Node, fx.Node] = field(default_factory=dict)
    cut: dict[tuple[fx.Node, Rows, int], fx.Node] = field(default_factory=dict)
    flat: dict[tuple[fx.Node, Rows], fx.Node] = field(default_factory=dict)
    buffers: dict[fx.Node, fx.Node] = field(default_factory=dict)
    sums: dict[fx.Node, AddedUp] = field(default_factory=dict)
    needs: dict[fx.Node, Sources] = field(default_factory=dict)
    #: Of a loss over all rows: that of each row of a piece.
    row_losses: dict[tuple[fx.Node, int], fx.Node] = field(default_factory=dict)

    def run_pass(self, nodes: Sequence[fx.Node]) -> None:
        """Write one pass over all pieces."""
        self.writer.begins_at(nodes[0])
        for piece in range(len(self.bounds)):
            for node in nodes:
                if node in self.region.sums:
                    self.add(node, self.region.sums[node], piece)
                else:
                    self.copy(node, self.region.rows[node], piece)
        for node in nodes:
            if node in self.sums:
                self.whole[node] = self.sums[node].whole()
            elif is_reduced_loss(node):
                self.finish_loss(node)
            elif node in self.buffers:
                self.whole[node] = self.unflattened(node, self.buffers[node])
            elif is_tensor(node) and self.is_read_outside(node):
                self.whole[node] = self.put_together(node)

    def copy(self, node: fx.Node, rows: Rows, piece: int) -> None:
        """A node of the region for one piece."""
        needs = self.needs_of(node, rows)
        start, stop = self.bounds[piece]
        args, kwargs = arguments_in_piece(node, rows, needs, stop - start)
        args, kwargs = fx.node.map_arg((args, kwargs), lambda source: self.argument(source, needs, piece, node))
        if _looks_alike(node, args):
            made = args[0]
        elif piece and self.is_as_long_as_last(piece):
            made = self.writer.call_again(self.made[node, piece - 1], tuple(args), kwargs, node)
        else:
            made = self.writer.call(node.target, tuple(args), node, **kwargs)
        self.made[node, piece] = made
        if node in self.late and is_tensor(node) and self.is_read_outside(node):
            self.write(node, rows, piece, made)

    def needs_of(self, node: fx.Node, rows: Rows) -> Sources:
        """What a node reads of the same rows, whichever the piece."""
        if node not in self.needs:
            needs = sources(node, rows, self.region.total)
            assert needs is not None
            self.needs[node] = needs
        return self.needs[node]

    def is_as_long_as_last(self, piece: int) -> bool:
        """Whether a piece has as many rows as the one in front of it."""
        (last, behind_last), (start, stop) = self.bounds[piece - 1], self.bounds[piece]
        return stop - start == behind_last - last

    def argument(self, source: fx.Node, needs: Sources, piece: int, reader: fx.Node) -> fx.Node:
        """What a node of the region reads in a piece."""
        if (source, piece) in self.made:
            return self.made[source, piece]
        if is_weight_of_loss(source) and source.args[0] in self.region.nodes:
            loss = source.args[0]
            assert isinstance(loss, fx.Node)
            return self.weight(loss)
        if source in needs:
            return self.part(source, needs[source], piece, reader)
        return self.whole.get(source, source)

    def part(self, source: fx.Node, rows: Rows, piece: int, reader: fx.Node) -> fx.Node:
        """A piece of what is made outside of the region."""
        if (source, rows, piece) not in self.cut:
            if (source, rows) not in self.flat:
                self.flat[source, rows] = self.writer.flattened(source, rows, reader)
            start, stop = (rows.each * at for at in self.bounds[piece])
            args = (self.flat[source, rows], rows.first, start, stop)
            self.cut[source, rows, piece] = self.writer.call(aten.slice.Tensor, args, reader)
        return self.cut[source, rows, piece]

    def add(self, node: fx.Node, needs: Sources, piece: int) -> None:
        """What a piece adds to a sum."""
        parts = {source: self.argument(source, needs, piece, node) for source in needs}
        if is_reduced_loss(node):
            named = given(node)
            args = (parts[named["self"]], parts[named["target"]], named["weight"], NO_REDUCTION, named["ignore_index"])
            both = self.writer.call(aten.nll_loss_forward.default, args, node)
            self.row_losses[node, piece] = self.writer.call(operator.getitem, (both, 0), node)
            return
        if node not in self.sums:
            self.sums[node] = AddedUp(self.writer, node, in_place=node in self.late)
        if name_of(node) in PRODUCTS:
            left, right = node.args[:2]
            self.sums[node].add_product(parts[left], parts[right])  # type: ignore[index]
        else:
            ((source, rows),) = needs.items()
            self.sums[node].add_reduced(source, parts[source], rows)

    def write(self, node: fx.Node, rows: Rows, piece: int, made: fx.Node) -> None:
        """Write rows that come out of the backward to their place."""
        if node not in self.buffers:
            shape = rows.shape_in_piece(shape_of(node), self.region.total)
            self.buffers[node] = self.writer.call(aten.new_empty.default, (made, shape), node)
            self.buffers[node].meta[RUN_ONCE] = True
        args = (self.buffers[node], made, rows.first, self.bounds[piece][0] * rows.each)
        self.buffers[node] = self.writer.call(write_rows_, args, node)

    def put_together(self, node: fx.Node) -> fx.Node:
        """Rows that come out of the forward."""
        pieces = [self.made[node, piece] for piece in range(len(self.bounds))]
        whole = self.writer.call(aten.cat.default, (pieces, self.region.rows[node].first), node)
        return self.unflattened(node, whole)

    def unflattened(self, node: fx.Node, whole: fx.Node) -> fx.Node:
        shape = list(shape_of(node))
        return whole if list(shape_of(whole)) == shape else self.writer.call(aten.view.default, (whole, shape), node)

    def finish_loss(self, node: fx.Node) -> None:
        """A loss over all rows, which have one each by now."""
        pieces = [self.row_losses[node, piece] for piece in range(len(self.bounds))]
        losses = self.writer.call(aten.cat.default, (pieces,), node)
        loss = loss_of_rows(self.writer, node, losses, self.weight(node))
        for user in node.users:
            if user.args[1] == 0:
                self.whole[user] = loss

    def weight(self, loss: fx.Node) -> fx.Node:
        """The weight of all rows of a loss."""
        if loss not in self.whole:
            self.whole[loss] = weight_of_rows(self.writer, loss)
        return self.whole[loss]

    def multiply_by(self, tangent: fx.Node) -> None:
        """What was made for a tangent of 1 is multiplied where the backward begins."""
        for node, whole in list(self.whole.items()):
            if node in self.late:
                self.writer.begins_at(node)
                self.whole[node] = self.writer.call(aten.mul.Tensor, (whole, tangent), node)
                self.whole[node].meta["partitioner_tag"] = "is_backward"

    def is_read_outside(self, node: fx.Node) -> bool:
        return bool(users_outside(node, self.region.nodes))

    def finish(self) -> None:
        """Let what stands outside read what is whole, and drop what was in one piece."""
        graph = self.writer.graph
        weights = [user for node in self.region.nodes for user in node.users if is_weight_of_loss(user)]
        for node in weights:
            loss = node.args[0]
            assert isinstance(loss, fx.Node)
            if node.users:
                self.whole[node] = self.weight(loss)
        for node, whole in self.whole.items():
            users = users_outside(node, {*self.region.nodes, whole})
            if name_of(node) != "nll_loss_forward":
                node.replace_all_uses_with(whole, delete_user_cb=set(users).__contains__)
            look_again(users)
        members = set(self.region.nodes)
        for node in list(reversed(graph.nodes)):
            is_part = node.target is operator.getitem and node.args[0] in members
            if (node in members or is_part) and not node.users:
                graph.erase_node(node)
        self.writer.put_in_order()
