"""Pass: a CPU dropout becomes its mask and the product with it, so that either can be kept.

The mask takes a byte an element and is dear to draw; the product takes four and is cheap. On CUDA
one fused kernel draws and multiplies from a few bytes of generator state: it stays whole.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

from graphopt.graph.joint import JointGraph

aten = torch.ops.aten
_ops = torch.ops.graphopt

_library = torch.library.Library("graphopt", "DEF")
_library.define(
    "dropout_mask(SymInt[] size, SymInt[] stride, float p, *, Device device) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag),
)
_library.define("apply_dropout_mask(Tensor input, Tensor mask, float p) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def _dropout_mask(size: Sequence[int], stride: Sequence[int], p: float, *, device: torch.device) -> torch.Tensor:
    # draws go by address: the layout decides which element gets which
    mask = torch.empty_strided(size, stride, dtype=torch.bool, device=device)
    return mask if mask.device.type == "meta" else mask.bernoulli_(1 - p)


def _apply_dropout_mask(input: torch.Tensor, mask: torch.Tensor, p: float) -> torch.Tensor:
    return input.mul(mask).mul_(_scale(p, input.dtype))


_library.impl("dropout_mask", _dropout_mask, "CompositeExplicitAutograd")
_library.impl("apply_dropout_mask", _apply_dropout_mask, "CPU")
_library.impl("apply_dropout_mask", lambda input, mask, _p: input.mul(mask), "Meta")


def split_dropout(joint: JointGraph) -> bool:
    """Replace each `native_dropout` on the CPU by a mask and a product; True where one was replaced.

    Same draw from the generator and bitwise the same product as the kernel it replaces
    (ATen/native/Dropout.cpp, `native_dropout_cpu`).
    """
    changed = False
    for node in joint.graph.find_nodes(op="call_function", target=aten.native_dropout.default):
        source, chance = node.args[0], node.args[1]
        if not isinstance(source, fx.Node) or node.args[2] is False or source.meta["val"].device.type != "cpu":
            continue
        _replace(joint.graph, node, source, float(chance))
        changed = True
    if changed:
        joint.module.recompile()
    return changed


def _replace(graph: fx.Graph, node: fx.Node, source: fx.Node, chance: float) -> None:
    product_value, mask_value = node.meta["val"]
    with graph.inserting_before(node):
        # the mask depends on sizes only: drawing it again needs no input
        layout, device = (list(mask_value.shape), list(mask_value.stride())), {"device": mask_value.device}
        mask = graph.create_node("call_function", _ops.dropout_mask.default, (), device, "dropout_mask")
        mask.args = (*layout, chance)  # sizes may be symbols here, which become nodes later (`sizes_from_inputs`)
        product = graph.create_node(
            "call_function", _ops.apply_dropout_mask.default, (source, mask, chance), {}, "dropout"
        )
    for made, value in ((mask, mask_value), (product, product_value)):
        made.meta = {**node.meta, "val": value}
    for item in list(node.users):
        assert item.target is operator.getitem
        item.replace_all_uses_with(product if item.args[1] == 0 else mask)
        graph.erase_node(item)
    graph.erase_node(node)
    if not product.users:  # only the draw is needed, for the state in which it leaves the generator
        graph.erase_node(product)
    # eager's backward multiplies by the scaled mask of its forward, AOTAutograd's by a number that was not rounded
    for user in list(mask.users):
        if user.target is aten.native_dropout_backward.default:
            user.args = (*user.args[:2], _scale(chance, source.meta["val"].dtype))


def _scale(p: float, dtype: torch.dtype) -> float:
    exact = 0.0 if p == 1.0 else 1.0 / (1.0 - p)
    # the kernel scales the mask, in the input's own precision
    return torch.tensor(exact, dtype=dtype).item() if dtype.itemsize < 4 else exact
