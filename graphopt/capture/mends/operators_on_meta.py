"""Operators on the meta device as devices have them: fused attention, and derivatives of what is made of others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch._C import DispatchKey
from torch._ops import OpOverload, OpOverloadPacket

aten = torch.ops.aten

#: What is said where a capture on the meta device has no gradient, in spite of all below.
NO_DERIVATIVE = (
    "no parameter gets a gradient on the meta device, where some operators have no derivative: build the model on a "
    "device"
)


@contextmanager
def operators_on_meta() -> Iterator[None]:
    """Inside, tensors without memory are traced as those of a device.

    `scaled_dot_product_attention` is the CPU's fused operator.
    PyTorch asks the device which of its kernels to take, and takes products for one that has none. What the fused one
    keeps is what CUDA's flash attention keeps: its result, and one number for each row.
    """
    library = torch.library.Library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", _fused, "AutogradMeta")
    try:
        with _decomposed():
            yield
    finally:
        library._destroy()


@contextmanager
def _decomposed() -> Iterator[None]:
    """Operators that are made of others are so on the meta device too.

    Where PyTorch has a kernel in Python for them there, tracing takes that one, which has no derivative: nothing before
    a cross entropy would get a gradient.
    """
    with ExitStack() as stack:
        for op in _with_kernels_on_meta():
            kept = {key: kernel for key, kernel in op.py_kernels.items() if key != DispatchKey.Meta}
            stack.callback(op._dispatch_cache.clear)
            stack.enter_context(mock.patch.dict(op.py_kernels, kept, clear=True))
            op._dispatch_cache.clear()
        yield


@cache
def _with_kernels_on_meta() -> tuple[OpOverload, ...]:
    packets = (getattr(aten, name) for name in dir(aten))
    known = [packet for packet in packets if isinstance(packet, OpOverloadPacket)]
    ops = (getattr(packet, name) for packet in known for name in packet.overloads())
    return tuple(
        op
        for op in ops
        if DispatchKey.Meta in op.py_kernels and op.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)
    )


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
