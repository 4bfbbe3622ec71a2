"""Pass: gradients are summed up over micro-batches right where the backward produces them.

A gradient that is returned lives to the end of the backward: a full set of them beside the
accumulators. Here each one is added as soon as it exists, and is gone; the gradient of a matrix
product need not exist at all, its product can go into the accumulator (`addmm_`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from graphopt import kernels
from graphopt.device.dtypes import HALF
from graphopt.graph.joint import JointGraph
from graphopt.graph.roles import DESCRIPTOR, Accumulator, Beta, add_input

aten = torch.ops.aten


def accumulate(joint: JointGraph, wanted: Iterable[int], *, fuse_products: bool = True) -> bool:
    """Add the gradients of the primals at positions `wanted` to accumulators; True where there was a gradient.

    With `fuse_products` a gradient that is a product never exists. Where such a sum is rounded is the BLAS's affair,
    another one on each CPU; without, each gradient is made and then added, which has eager's bits everywhere.

    The graph gets an accumulator as a new input for each gradient, float32 for half ones, laid out
    like its parameter, and `beta`, 0.0 in the first micro-batch and 1.0 after: the first one is
    written, so that accumulators need no zeros. Returned gradients become None; those that are not
    wanted go with what computes them alone.
    """
    wanted, found, primals = set(wanted), joint.gradients, joint.primals
    if not found:
        return False
    beta = add_input(joint.graph, "beta", Beta(), 1.0)
    joint.set_gradients({})
    for position, gradient in found.items():
        if position in wanted:
            accumulator = _add_accumulator(joint.graph, primals[position], gradient, position)
            _insert_sum(joint.graph, gradient, accumulator, beta, fuse_products)
    joint.graph.eliminate_dead_code()
    joint.module.recompile()
    return True


def _add_accumulator(graph: fx.Graph, primal: fx.Node, gradient: fx.Node, position: int) -> fx.Node:
    parameter = primal.meta["val"]
    if parameter.shape != gradient.meta["val"].shape:  # it is this rank's rows of it
        parameter = gradient.meta["val"]
    dtype = torch.float32 if parameter.dtype in HALF else parameter.dtype
    value = torch.empty_like(parameter, dtype=dtype)
    index = getattr(primal.meta.get(DESCRIPTOR), "idx", position)
    return add_input(graph, f"accumulator_{primal.name}", Accumulator(index), value)


def _insert_sum(graph: fx.Graph, gradient: fx.Node, accumulator: fx.Node, beta: fx.Node, fuse_products: bool) -> None:
    product, transposed = _as_product(gradient, accumulator) if fuse_products else (None, False)
    if product is None:
        _call(graph, gradient, kernels.accumulate_, (accumulator, gradient, beta))
        return
    a, b = product.args[:2]
    target = accumulator
    if transposed:
        target = _call(graph, product, aten.t.default, (accumulator,))
        target.meta["val"] = accumulator.meta["val"].t()
    _call(graph, target if transposed else product, kernels.accumulate_mm_, (target, a, b, beta))


def _as_product(gradient: fx.Node, accumulator: fx.Node) -> tuple[fx.Node | None, bool]:
    """The `mm` that a gradient is, behind any transpositions, and whether they turn it; None where it is more.

    The product must be read for nothing else, and be of the accumulator's dtype: half products are
    rounded once before they are added, as eager's are.
    """
    node, transposed = gradient, False
    while len(node.users) <= 1 and node.target is aten.t.default and isinstance(node.args[0], fx.Node):
        node, transposed = node.args[0], not transposed
    is_product = node.target is aten.mm.default and len(node.users) <= 1
    if not is_product or node.meta["val"].dtype != accumulator.meta["val"].dtype:
        return None, False
    return node, transposed


def _call(graph: fx.Graph, behind: fx.Node, target: Callable[..., object], args: tuple[Any, ...]) -> fx.Node:
    if behind.op == "placeholder":
        behind = next(n for n in reversed(graph.nodes) if n.op != "output")
    with graph.inserting_after(behind):
        node = graph.call_function(target, args)
    meta = {key: value for key, value in behind.meta.items() if key not in ("val", "tensor_meta", DESCRIPTOR)}
    node.meta = {**meta, "partitioner_tag": "is_backward"}
    return node
