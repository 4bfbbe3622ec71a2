"""Products of matrices, and sums over named axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graphopt.formats.onnx.ops.node import Handler, OnnxNode


def _matmul(_: OnnxNode, x: Tensor, y: Tensor) -> Tensor:
    return torch.matmul(x, y)


def _gemm(node: OnnxNode, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    if node.get("transA", 0):
        a = a.transpose(0, 1)
    if a.dtype.is_floating_point and alpha == 1.0 and (c is None or (beta == 1.0 and c.dim() == 1)):
        weight = b if node.get("transB", 0) else b.transpose(0, 1)
        if c is None or c.shape[0] == weight.shape[0]:
            return F.linear(a, weight, c)
    product = torch.matmul(a, b.transpose(0, 1) if node.get("transB", 0) else b)
    product = product if alpha == 1.0 else _scaled(product, alpha)
    if c is None:
        return product
    return product + (c if beta == 1.0 else _scaled(c, beta))


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x * (factor if x.dtype.is_floating_point else int(factor))


def _einsum(node: OnnxNode, *inputs: Tensor) -> Any:
    return torch.einsum(node.get("equation").replace(" ", ""), *inputs)


def _det(_: OnnxNode, x: Tensor) -> Any:
    return torch.linalg.det(x)


PRODUCTS: dict[str, Handler] = {"MatMul": _matmul, "Gemm": _gemm, "Einsum": _einsum, "Det": _det}
