"""The norm, the loss scale and accumulation, with torch's own ops; `graphopt.kernels.tail.ops` says what they mean."""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_norm(gradients: list[Tensor], norm_type: float) -> tuple[Tensor, Tensor]:
    """See `graphopt.kernels.tail.ops`; bit for bit what `clip_grad_norm_` finds where gradients are fp32 or fp64.

    One read, as a norm that is finite proves every element to be. Only a norm that is not has the
    gradients read again, to tell an infinite element from a sum beyond fp32.
    """
    device = gradients[0].device if gradients else "cpu"
    filled = [g for g in gradients if g.numel()]
    wide = [g for g in filled if g.dtype == torch.float64]
    rest = [g for g in filled if g.dtype != torch.float64]
    if not filled:
        return torch.zeros((), dtype=norm_dtype(gradients), device=device), torch.zeros((), device=device)
    norms = [*torch._foreach_norm(rest, norm_type, dtype=torch.float32)] if rest else []
    norms += [torch.linalg.vector_norm(g, norm_type) for g in wide]
    norm = torch.linalg.vector_norm(torch.stack([each.to(norm_dtype(gradients)) for each in norms]), norm_type)
    if torch.isfinite(norm):
        return norm, torch.zeros_like(norm, dtype=torch.float32)
    return norm_without_overflow(filled, norm_type)


def norm_dtype(gradients: list[Tensor]) -> torch.dtype:
    """What the norm of these gradients is given in: fp64 where one of them is."""
    return torch.float64 if any(g.dtype == torch.float64 for g in gradients) else torch.float32


def norm_without_overflow(gradients: list[Tensor], norm_type: float) -> tuple[Tensor, Tensor]:
    """What `gradient_norm` gives, by the norm of gradients over the largest element of all, in fp64, times that.

    No gradient may be empty, and there must be one.
    """
    largest = torch.stack([g.abs().max().double() for g in gradients]).max()
    if not torch.isfinite(largest):
        return largest.to(norm_dtype(gradients)), torch.ones_like(largest, dtype=torch.float32)
    norms = [torch.linalg.vector_norm(g.double() / largest, norm_type) for g in gradients]
    norm = largest * torch.linalg.vector_norm(torch.stack(norms), norm_type)
    return norm.to(norm_dtype(gradients)), torch.zeros_like(norm, dtype=torch.float32)


def scale_update_(
    scale: Tensor,
    growth_tracker: Tensor,
    hysteresis_tracker: Tensor,
    found_inf: Tensor,
    *,
    growth: float,
    backoff: float,
    interval: int,
    hysteresis: int,
    lowest: float,
    highest: float,
) -> None:
    """See `graphopt.kernels.tail.ops`; products are rounded once, from fp64, as `_amp_update_scale_` rounds them."""
    overflow = found_inf != 0
    good_steps = torch.where(overflow, 0, growth_tracker + 1)
    patience = torch.where(overflow, (hysteresis_tracker - 1).clamp(min=0), hysteresis_tracker)
    grows = good_steps == interval
    lower = (scale.double() * backoff).clamp(min=lowest).float()
    higher = (scale.double() * growth).clamp(max=highest).float()
    scale.copy_(
        torch.where(
            overflow,
            torch.where(patience == 0, lower, scale),
            torch.where(grows & torch.isfinite(higher), higher, scale),
        )
    )
    growth_tracker.copy_(torch.where(grows, 0, good_steps))
    hysteresis_tracker.copy_(torch.where(grows, hysteresis, patience))


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
