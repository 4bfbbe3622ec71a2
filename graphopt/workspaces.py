"""What libraries take on a CUDA device at their first call and keep for good, taken before a plan counts what is left.

cuBLAS has a workspace (32 MiB on Hopper, else 8) for each thread that multiplies, and cuBLASLt another of 1 MiB for
each that multiplies and adds a bias. Autograd runs the backward on a CUDA device in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from graphopt.cost_models.timing import plain_execution
from graphopt.stepgraph import StepGraph

#: Words in the names of operators that multiply matrices. One too many costs memory, one too few breaks a budget.
_PRODUCTS = ("mm", "mv", "dot", "linear", "matmul", "linalg", "cdist", "solve", "cholesky", "qr", "svd", "inverse")
_KNOWN = ("aten", "prims", "graphopt")


def take_workspaces(graphs: Iterable[StepGraph], device: torch.device, *, in_autograd: bool) -> None:
    """Let cuBLAS take what these graphs make it take, in this thread and, with `in_autograd`, in autograd's too."""
    names = {str(node.target) for graph in graphs for node in graph.compute_nodes}
    if device.type != "cuda" or not any(map(_multiplies, names)):
        return
    multiply(device, biased=any("addmm" in name for name in names), in_autograd=in_autograd)


def multiply(device: torch.device, *, biased: bool, in_autograd: bool) -> None:
    """Small products in this thread and, with `in_autograd`, in autograd's."""
    with plain_execution(device), torch.enable_grad():
        small = torch.ones(16, 16, device=device, requires_grad=True)
        result = _Products.apply(small, biased)  # type: ignore[no-untyped-call]
        if in_autograd:
            result.sum().backward()


def _multiplies(name: str) -> bool:
    """Whether an operator of this name may use cuBLAS; nobody knows what one of another library does."""
    words = _PRODUCTS if torch.backends.cudnn.enabled else (*_PRODUCTS, "conv")
    return name.partition(".")[0] not in _KNOWN or any(word in name for word in words)


class _Products(torch.autograd.Function):
    """The same products in the forward's thread and in the backward's, which also recomputes what the forward did."""

    @staticmethod
    def forward(ctx: Any, small: torch.Tensor, biased: bool) -> torch.Tensor:
        ctx.save_for_backward(small)
        ctx.biased = biased
        return _products(small, biased)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (small,) = ctx.saved_tensors
        return gradients[0] @ _products(small, ctx.biased), None


def _products(small: torch.Tensor, biased: bool) -> torch.Tensor:
    product = small @ small
    return torch.addmm(small[0], product, small) if biased else product
