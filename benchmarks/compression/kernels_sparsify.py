"""Sending the largest elements by our ops, and as one would write it in torch's; plain wires are tuples.

Every run takes up what the one before it kept. The scale of a half keeps the sums from growing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.compression.kernels_rows import Comparison, Gradients
from graphopt import kernels

RATIO, MOMENTUM = 0.01, 0.9
Wire = tuple[Tensor, Tensor]


def sparsifying(gradients: Gradients) -> list[Comparison]:
    """1 % of the elements there and back, and with the momentum of Deep Gradient Compression."""
    buckets, residuals = gradients.buckets, gradients.residuals
    flat, flat_residuals = gradients.flat, gradients.flat_residuals
    overflow, scale = torch.zeros(()), torch.tensor(0.5)
    counts = [math.ceil(RATIO * gradient.numel()) for gradient in buckets[0]]
    momenta = [[torch.randn_like(gradient) * 1e-5 for gradient in bucket] for bucket in buckets]
    velocities, sums = ([torch.zeros_like(bucket) for bucket in flat] for _ in range(2))
    wires = [kernels.sparsify_(list(map(torch.clone, b)), [], overflow, None, counts, None) for b in buckets]
    received = [torch.cat([wire, wire]) for wire in wires]
    plain = [exact(bucket.clone()) for bucket in flat]
    return [
        Comparison(
            "largest 1 % with error feedback",
            lambda: [
                kernels.sparsify_(b, r, overflow, scale, counts, None) for b, r in zip(buckets, residuals, strict=True)
            ],
            {
                "plain, exact": lambda: [exact(added(*pair)) for pair in zip(flat, flat_residuals, strict=True)],
                "plain, sampled": lambda: [sampled(added(*pair)) for pair in zip(flat, flat_residuals, strict=True)],
            },
        ),
        Comparison(
            "largest 1 % with momentum (DGC)",
            lambda: [
                kernels.sparsify_momentum_(b, r, m, overflow, scale, counts, MOMENTUM)
                for b, r, m in zip(buckets, residuals, momenta, strict=True)
            ],
            {"plain, exact": lambda: [with_momentum(*some) for some in zip(flat, velocities, sums, strict=True)]},
        ),
        Comparison(
            "largest 1 %: sum of 2 wires",
            lambda: [
                kernels.desparsify_(w, b, 2, counts, torch.tensor(2.0)) for w, b in zip(received, buckets, strict=True)
            ],
            {"plain": lambda: [total([w, w], b) for w, b in zip(plain, flat, strict=True)]},
        ),
    ]


def added(gradient: Tensor, residual: Tensor) -> Tensor:
    """Their sum, in the gradient."""
    return torch.add(residual, gradient, alpha=0.5, out=gradient)


def exact(x: Tensor) -> Wire:
    """The largest, which become zero in `x`."""
    indices = x.abs().topk(math.ceil(RATIO * x.numel()), sorted=False).indices
    return sent(x, indices)


def sampled(x: Tensor) -> Wire:
    """About the largest: above the quantile of a sample, the first ones where they are too many."""
    magnitudes = x.abs()
    sample = magnitudes[:: x.numel() // 8192]
    threshold = sample.topk(math.ceil(RATIO * len(sample)), sorted=False).values.min()
    return sent(x, (magnitudes >= threshold).nonzero().view(-1)[: math.ceil(RATIO * x.numel())])


def sent(x: Tensor, indices: Tensor) -> Wire:
    """What travels; `x` keeps the rest."""
    values = x[indices]
    x[indices] = 0
    return indices, values


def with_momentum(gradient: Tensor, velocity: Tensor, total: Tensor) -> Wire:
    """Both states move in place, and are forgotten where something was sent."""
    velocity.mul_(MOMENTUM).add_(gradient, alpha=0.5)
    indices, values = exact(total.add_(velocity))
    velocity[indices] = 0
    return indices, values


def total(wires: list[Wire], gradient: Tensor) -> None:
    """Twice their sum into the gradient."""
    gradient.zero_()
    for indices, values in wires:
        gradient.index_add_(0, indices, values)
    gradient.mul_(2.0)
