"""Gradients in and out of one tensor, with torch's own ops; `graphopt.kernels.messages.ops` says what each op means."""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.kernels.layout import flat as elements


def pack(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    """See `graphopt.kernels.messages.ops`."""
    device = tensors[0].device if tensors else None
    packed = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=dtype, device=device)
    for tensor, place in zip(tensors, packed.split([tensor.numel() for tensor in tensors]), strict=True):
        place.copy_(elements(tensor))
    return packed


def unpack_(flat: Tensor, tensors: list[Tensor]) -> None:
    """See `graphopt.kernels.messages.ops`."""
    for tensor, place in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        elements(tensor).copy_(place)


def sum_parts(received: Tensor, parts: int) -> Tensor:
    """See `graphopt.kernels.messages.ops`."""
    first, *others = received.view(parts, -1).unbind()
    total = first.float()
    for other in others:
        total += other
    return total.to(received.dtype)


def commit_(state: list[Tensor], pending: list[Tensor], overflow: Tensor) -> None:
    """See `graphopt.kernels.messages.ops`."""
    if overflow.device.type == "cpu":
        if state and not overflow:
            torch._foreach_copy_(state, pending)
        return
    for kept, new in zip(state, pending, strict=True):
        kept.copy_(torch.where(overflow == 0, new, kept))
