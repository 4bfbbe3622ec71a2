"""Convolutions in channels-last order, written into a joint graph before it is planned.

oneDNN is faster on channels-last tensors, which it need not bring into an order of its own. Convolutions of the zoo,
forward and backward on one thread of a CPU, take 0.49 (ConvNeXt) to 0.82 (ResNet-50) of their time in contiguous order;
ViT's only one takes the same (November 2026). Inductor would turn them while it compiles (`layout_optimization`), with
copies of weights and inputs that no plan has. So the same is done here, in the graphs in which Inductor would: copies
are ops, strides are those that will run, and a compiler finds nothing left to turn.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._inductor.graph import GraphLowering
from torch._prims_common import suggest_memory_format

from graphopt.graph.nodes import is_mutating, is_random
from graphopt.graph.step_graph import tensors_of
from graphopt.lower.virtual_values import GATHERS, POINTWISE, REDUCTIONS

aten, prims = torch.ops.aten, torch.ops.prims

#: Where an op of a convolution has its tensors: what must be turned, its input first.
_CONVOLUTIONS = {aten.convolution.default: (0, 1), aten.convolution_backward.default: (1, 2, 0)}
#: Beside pointwise ops, reductions and views: what gives the same numbers whatever the order of its inputs in memory,
#: and needs no copy for it.
_ANY_ORDER = {
    *(aten.cat.default, aten.constant_pad_nd.default, aten.slice_scatter.default, aten.select_scatter.default),
    *(aten.max_pool2d_with_indices.default, aten.max_pool2d_with_indices_backward.default),
    *(prims._low_memory_max_pool_with_offsets.default, prims._low_memory_max_pool_offsets_to_indices.default),
    *(aten.avg_pool2d.default, aten.avg_pool2d_backward.default),
    *(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d_backward.default),
    *(aten.upsample_nearest2d_backward.default, aten.upsample_bilinear2d_backward.default),
    *(aten._unsafe_index_put.default, aten.index_put.default),
    *(aten.mm.default, aten.addmm.default, aten.bmm.default),
}
#: They read a storage by numbers that were traced for one order.
_BY_STRIDES = {aten.as_strided.default, aten.as_strided_scatter.default}
#: What a copy has of the node that it is made for: where it stands in the model, and in which half.
_PLACE = ("stack_trace", "nn_module_stack", "fwd_nn_module_stack", "partitioner_tag", "seq_nr")


def turn_convolutions(module: fx.GraphModule, mode: Any) -> None:
    """Let the 2D convolutions of a joint graph run channels-last, where Inductor would.

    `mode` is the graph's fake mode. The order goes on through ops that give the same numbers in any; others (draws, the
    user's own) read copies in the order that they were traced with, and so does who calls the graph.
    """
    if not any(map(_is_convolution, module.graph.nodes)):
        return
    if any(node.target in _BY_STRIDES for node in module.graph.nodes):
        return
    if GraphLowering.decide_layout_opt(module, is_inference=False):
        walk = _Walk(module.graph, mode)
        for node in list(module.graph.nodes):
            walk.visit(node)
        module.recompile()


def _is_convolution(node: fx.Node) -> bool:
    """Whether it is one of two dimensions, of a batch of known sizes."""
    if node.target not in _CONVOLUTIONS:
        return False
    tensors = [node.args[place].meta["val"] for place in _CONVOLUTIONS[node.target]]  # type: ignore[union-attr]
    return all(each.dim() == 4 and all(isinstance(size, int) for size in each.shape) for each in tensors)


@dataclass(eq=False)
class _Walk:
    """Goes through a graph in its order; `traced` are the strides that tensors had, of nodes that have others now."""

    graph: fx.Graph
    mode: Any
    traced: dict[fx.Node, list[tuple[int, ...]]] = field(default_factory=dict)
    copies: dict[tuple[fx.Node, torch.memory_format], fx.Node] = field(default_factory=dict)

    def visit(self, node: fx.Node) -> None:
        """Give a node its inputs in the order in which it is to read them, and its results theirs."""
        is_turned = _is_convolution(node)
        if not is_turned and not any(source in self.traced for source in node.all_input_nodes):
            return
        if is_turned:
            self._turn_inputs(node)
        elif not _takes_any_order(node):
            self._restore_inputs(node)
            return
        strides = [tensor.stride() for tensor in tensors_of(node)]
        try:
            node.meta["val"] = self._value(node)
        except (RuntimeError, ValueError):  # a view that the new order does not allow
            self._restore_inputs(node)
            return
        pairs = zip(tensors_of(node), strides, strict=True)
        if any(not _alike(tensor.shape, tensor.stride(), before) for tensor, before in pairs):
            self.traced[node] = strides

    def _turn_inputs(self, node: fx.Node) -> None:
        args = list(node.args)
        first, *others = _CONVOLUTIONS[node.target]  # type: ignore[index]
        for place in (first, *others):
            source: Any = args[place]
            if not _is_channels_last(source.meta["val"], decides=place == first):
                args[place] = self._copy(source, node, torch.channels_last)
        node.args = tuple(args)

    def _restore_inputs(self, node: fx.Node) -> None:
        def restored(source: fx.Node) -> fx.Node:
            return self._restored(source, node) if source in self.traced else source

        node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), restored)

    def _restored(self, source: fx.Node, reader: fx.Node) -> fx.Node:
        """A copy in the order that was traced."""
        # what is returned is copied where it is made: of all gradients one at a time is there twice
        place = source.next if reader.op == "output" else reader
        (strides,) = self.traced[source]
        wide = [i for i, size in enumerate(source.meta["val"].shape) if size > 1]
        order = sorted(wide, key=strides.__getitem__, reverse=True)
        if order == wide:
            return self._copy(source, place, torch.contiguous_format)
        order += [i for i in range(len(strides)) if i not in wide]
        back = [order.index(i) for i in range(len(strides))]
        turned = self._insert(aten.permute.default, (source, order), place)
        return self._insert(aten.permute.default, (self._copy(turned, place, torch.contiguous_format), back), place)

    def _copy(self, source: fx.Node, place: fx.Node, order: torch.memory_format) -> fx.Node:
        if (source, order) not in self.copies:
            self.copies[source, order] = self._insert(aten.clone.default, (source,), place, memory_format=order)
        return self.copies[source, order]

    def _insert(self, target: Any, args: tuple[Any, ...], place: fx.Node, **kwargs: Any) -> fx.Node:
        """A new node in front of `place`."""
        with self.graph.inserting_before(place):
            made = self.graph.call_function(target, args, kwargs)
        like = args[0] if place.op == "output" or args[0].next is made else place
        made.meta = {key: like.meta[key] for key in _PLACE if key in like.meta}
        made.meta["val"] = self._value(made)
        return made

    def _value(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
        with self.mode:
            return node.target(*args, **kwargs)  # type: ignore[operator]


def _is_channels_last(tensor: torch.Tensor, *, decides: bool) -> bool:
    """Whether a convolution reads it as it is; the kernels ask the one that `decides` which order they are to take."""
    if not tensor.is_contiguous(memory_format=torch.channels_last):
        return False
    # one channel is in both orders, and strides tell which is meant
    return not decides or tensor.shape[2:].numel() == 1 or suggest_memory_format(tensor) is torch.channels_last


def _alike(shape: torch.Size, strides: tuple[int, ...], others: tuple[int, ...]) -> bool:
    return all(a == b for size, a, b in zip(shape, strides, others, strict=True) if size > 1)


def _takes_any_order(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace not in ("aten", "prims"):
        return False
    if is_random(node) or is_mutating(node):
        return False
    known = node.target in POINTWISE or node.target in REDUCTIONS or node.target in GATHERS or node.target in _ANY_ORDER
    return known or node.target.is_view or torch.Tag.pointwise in node.target.tags
