"""What libraries take on a CUDA device at their first call and keep for good, taken before a plan counts what is left.

cuBLAS has a workspace (32 MiB on Hopper, else 8) for each thread that multiplies, and cuBLASLt another of 1 MiB for
each that multiplies and adds a bias. Autograd runs the backward on a CUDA device in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from graphopt.cost_models.inputs import runnable
from graphopt.cost_models.signature import Signature, signature
from graphopt.device.timing import plain_execution
from graphopt.graph.step_graph import StepGraph

#: Words in the names of operators that multiply matrices. One too many costs memory, one too few breaks a budget.
_PRODUCTS = ("mm", "mv", "dot", "linear", "matmul", "linalg", "cdist", "solve", "cholesky", "qr", "svd", "inverse")
_KNOWN = ("aten", "prims", "graphopt")


def take_workspaces(graphs: Iterable[StepGraph], device: torch.device, *, in_autograd: bool) -> None:
    """Let cuBLAS take what these graphs make it take, in this thread and, with `in_autograd`, in autograd's too."""
    if device.type == "cuda":
        multiply(products_of(graphs), device, in_autograd=in_autograd)


def products_of(graphs: Iterable[StepGraph]) -> list[Signature]:
    """Each call of the graphs that may use cuBLAS, once: what a library takes may depend on sizes and types."""
    nodes = (node for graph in graphs for node in graph.compute_nodes if _multiplies(str(node.target)))
    calls = (signature(node) for node in nodes)
    return list({call.key: call for call in calls if call is not None}.values())


def multiply(calls: Sequence[Signature], device: torch.device, *, in_autograd: bool) -> None:
    """Run each call once in this thread and, with `in_autograd`, in autograd's, which recomputes them."""
    if not calls:
        return
    # Tracing keeps autograd in the thread that traces; a step's backward will not be there.
    with plain_execution(device), torch.enable_grad(), torch.autograd.set_multithreading_enabled(True):
        result = _Products.apply(torch.zeros((), device=device, requires_grad=True), calls)  # type: ignore[no-untyped-call]
        if in_autograd:
            result.backward()


def _multiplies(name: str) -> bool:
    """Whether an operator of this name may use cuBLAS; nobody knows what one of another library does."""
    words = _PRODUCTS if torch.backends.cudnn.enabled else (*_PRODUCTS, "conv")
    return name.partition(".")[0] not in _KNOWN or any(word in name for word in words)


class _Products(torch.autograd.Function):
    """The same products in the forward's thread and in the backward's."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, calls: Sequence[Signature]) -> torch.Tensor:
        ctx.calls = calls
        _run_each(calls)
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        _run_each(ctx.calls)
        return gradients[0], None


def _run_each(calls: Sequence[Signature]) -> None:
    for call in calls:
        runnable(call)  # runs it once, on arguments that are gone before the next one's are made
