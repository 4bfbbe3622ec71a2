"""Operators on the meta device as other devices have them: fused attention, and losses that have a derivative."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

aten = torch.ops.aten


@contextmanager
def operators_on_meta() -> Iterator[None]:
    """Inside, tensors without memory are traced as those of a device.

    `scaled_dot_product_attention` is the CPU's fused operator.
    PyTorch asks the device which of its kernels to take, and takes products for one that has none. What the fused one
    keeps is what CUDA's flash attention keeps: its result, and one number for each row.
    """
    library = torch.library.Library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", _fused, "AutogradMeta")
    # tracing on meta tensors takes these for operators without a derivative: nothing before them would get a gradient
    library.impl("nll_loss", _loss_by(aten.nll_loss_forward), "AutogradMeta")
    library.impl("nll_loss2d", _loss_by(aten.nll_loss2d_forward), "AutogradMeta")
    try:
        yield
    finally:
        library._destroy()


def _loss_by(forward: Any) -> Callable[..., torch.Tensor]:
    def loss(
        predicted: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor | None = None,
        reduction: int = 1,
        ignore_index: Any = -100,
    ) -> torch.Tensor:
        made: torch.Tensor = forward(predicted, target, weight, reduction, ignore_index)[0]
        return made

    return loss


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    _dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in (key, value))
    # dropout has no fused kernel on a CPU, and keeps no mask on CUDA
    made = aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale
    )
    return made[0]
