"""Attention on the meta device as one operator, as devices have it, and not as products whose scores are kept."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

aten = torch.ops.aten


@contextmanager
def fused_attention_on_meta() -> Iterator[None]:
    """Inside, `scaled_dot_product_attention` of tensors without memory is the CPU's fused operator.

    PyTorch asks the device which of its kernels to take, and takes products for one that has none. What the fused one
    keeps is what CUDA's flash attention keeps: its result, and one number for each row.
    """
    library = torch.library.Library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", _fused, "AutogradMeta")
    try:
        with warnings.catch_warnings():
            # of nll_loss, which is decomposed before it is differentiated
            warnings.filterwarnings("ignore", "aten::nll_loss: an autograd kernel was not registered")
            yield
    finally:
        library._destroy()


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
