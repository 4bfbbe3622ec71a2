"""The norm of all gradients and whether they are finite, with torch's own ops."""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_norm(gradients: list[Tensor], norm_type: float) -> tuple[Tensor, Tensor]:
    """See `graphopt.kernels.tail.ops`; bit for bit what `clip_grad_norm_` finds where gradients are fp32.

    One read, as a norm that is finite proves every element to be. Only a norm that is not has the
    gradients read again, to tell an infinite element from a sum beyond fp32.
    """
    device = gradients[0].device if gradients else "cpu"
    filled = [g for g in gradients if g.numel()]
    wide = [g for g in filled if g.dtype == torch.float64]
    rest = [g for g in filled if g.dtype != torch.float64]
    if not filled:
        return torch.zeros((), device=device), torch.zeros((), device=device)
    norms = [*torch._foreach_norm(rest, norm_type, dtype=torch.float32)] if rest else []
    norms += [torch.linalg.vector_norm(g, norm_type).float() for g in wide]
    norm = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    if torch.isfinite(norm):
        return norm, torch.zeros_like(norm)
    return norm_without_overflow(filled, norm_type)


def norm_without_overflow(gradients: list[Tensor], norm_type: float) -> tuple[Tensor, Tensor]:
    """The norm of gradients over the largest of them, in fp64, times that."""
    largest = torch.stack([g.abs().max().double() for g in gradients]).max()
    if not torch.isfinite(largest):
        return largest.float(), torch.ones_like(largest, dtype=torch.float32)
    norms = [torch.linalg.vector_norm(g.double() / largest, norm_type) for g in gradients]
    norm = largest * torch.linalg.vector_norm(torch.stack(norms), norm_type)
    return norm.float(), torch.zeros_like(norm, dtype=torch.float32)
