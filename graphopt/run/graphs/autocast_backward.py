"""A backward inside of autocast: PyTorch advises against it, and where it matters it is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphopt.device.storages import tensors_in

aten = torch.ops.aten
#: What autocast runs in lower precision, as far as a backward has it.
_PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.mv, aten.convolution_backward, aten.convolution)


def has_full_precision_products(backward: fx.GraphModule) -> bool:
    """Whether some product of a backward is of float32 tensors: inside of autocast, eager would round them."""
    for node in backward.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "overloadpacket", None) in _PRODUCTS:
            given = [t for source in node.all_input_nodes for t in tensors_in(source.meta.get("val"))]
            if given and all(tensor.dtype == torch.float32 for tensor in given):
                return True
    return False


def say_if_backward_is_inside(result: Any, device_type: str, say: Callable[[], None]) -> None:
    """Call `say` when a backward through these outputs is run while autocast is on."""

    def heed(_gradient: torch.Tensor) -> None:
        if torch.is_autocast_enabled(device_type):
            say()

    for tensor in tensors_in(result):
        if tensor.requires_grad:
            tensor.register_hook(heed)


def warn_of_rounding() -> None:
    """The difference to eager, named."""
    warnings.warn(
        "backward() is called inside of autocast, which PyTorch advises against: eager would round the float32 "
        "products of this backward to the autocast dtype, graphopt runs them in float32. Move backward() out of "
        "the autocast block for the same numbers",
        stacklevel=2,
    )
