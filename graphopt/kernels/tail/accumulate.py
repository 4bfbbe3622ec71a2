"""Gradients added into accumulators where the backward produces them."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulate_(accumulator: Tensor, gradient: Tensor, beta: float) -> None:
    """See `graphopt.kernels.tail.ops`."""
    if beta == 0:
        accumulator.copy_(gradient)
    elif beta == 1:
        accumulator.add_(gradient)
    else:
        accumulator.mul_(beta).add_(gradient)


def accumulate_mm_(accumulator: Tensor, a: Tensor, b: Tensor, beta: float) -> None:
    """See `graphopt.kernels.tail.ops`."""
    if accumulator.dtype == a.dtype == b.dtype:
        accumulator.addmm_(a, b, beta=beta)
    else:
        accumulate_(accumulator, torch.mm(a, b), beta)
