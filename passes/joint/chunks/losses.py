"""The loss of all rows from those of each: the mean is over what all rows weigh, those that are ignored nothing."""

from __future__ import annotations

import operator

import torch
from torch import fx

from graphopt.passes.joint.chunks.ops import given, tensor
from graphopt.passes.joint.chunks.writing import Writer

aten = torch.ops.aten

_IGNORED = -100
_MEAN = 1


def weight_of_rows(writer: Writer, node: fx.Node) -> fx.Node:
    """The weight of all rows of the loss `node`, which follows from its targets."""
    target, weight = given(node)["target"], given(node)["weight"]
    if weight is not None:
        return writer.call(aten.sum.default, (_weights(writer, node, target, weight),), node)
    zeros = writer.call(aten.zeros_like.default, (target,), node, dtype=tensor(given(node)["self"]).dtype)
    return writer.call(operator.getitem, (_counted(writer, node, zeros, target), 1), node)


def loss_of_rows(writer: Writer, node: fx.Node, losses: fx.Node, weight: fx.Node) -> fx.Node:
    """What `node` gives, from the loss of each row and the weight of all.

    Where classes have no weights it is eager's own kernel on what eager's picks of each row, and has its bits.
    """
    if given(node)["weight"] is None:
        picked = writer.call(aten.neg.default, (losses,), node)
        return writer.call(operator.getitem, (_counted(writer, node, picked, given(node)["target"]), 0), node)
    total = writer.call(aten.sum.default, (losses,), node)
    return writer.call(aten.div.Tensor, (total, weight), node) if given(node)["reduction"] == _MEAN else total


def _counted(writer: Writer, node: fx.Node, picked: fx.Node, target: fx.Node) -> fx.Node:
    """The loss of rows that have one class each, with what is picked of them as its score."""
    ignored = writer.call(aten.eq.Scalar, (target, given(node)["ignore_index"]), node)
    only = writer.call(aten.zeros_like.default, (target,), node)
    only = writer.call(aten.masked_fill.Scalar, (only, ignored, _IGNORED), node)
    scores = writer.call(aten.unsqueeze.default, (picked, 1), node)
    args = (scores, only, None, given(node)["reduction"], _IGNORED)
    return writer.call(aten.nll_loss_forward.default, args, node)


def _weights(writer: Writer, node: fx.Node, target: fx.Node, weight: fx.Node) -> fx.Node:
    ignored = writer.call(aten.eq.Scalar, (target, given(node)["ignore_index"]), node)
    classes = writer.call(aten.masked_fill.Scalar, (target, ignored, 0), node)
    found = writer.call(aten.index_select.default, (weight, 0, classes), node)
    return writer.call(aten.masked_fill.Scalar, (found, ignored, 0), node)
