"""Kernels that eager runs, in place of those in Python that PyTorch has for them and takes when it traces.

What is written in Python rounds otherwise, and some of it is wrong: it leaves a scale out, or masks the wrong elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import OpOverload

aten = torch.ops.aten

#: Dispatch keys in front of a kernel at which tracing takes a function in Python.
KEYS = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)

#: Those with such functions whose numbers differ by them, and their kin. Tests list all that are left.
OPS: tuple[OpOverload, ...] = (
    *(aten.upsample_linear1d.vec, aten.upsample_trilinear3d.vec),
    *(aten.upsample_bilinear2d.vec, aten.upsample_bilinear2d.default, aten._upsample_bilinear2d_aa.vec),
    *(aten.upsample_bicubic2d.vec, aten.upsample_bicubic2d.default, aten._upsample_bicubic2d_aa.vec),
    aten._upsample_lanczos2d_aa.vec,
    *(aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec),
    *(aten.upsample_nearest1d.default, aten.upsample_nearest2d.default, aten.upsample_nearest3d.default),
    *(aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact1d.default),
    *(aten._upsample_nearest_exact2d.vec, aten._upsample_nearest_exact2d.default),
    *(aten._upsample_nearest_exact3d.vec, aten._upsample_nearest_exact3d.default),
    *(aten.multilabel_margin_loss_forward.default, aten.multi_margin_loss.default),
    *(aten.hardshrink.default, aten.softshrink.default),
    aten.matmul.default,
)


@contextmanager
def eagers_kernels() -> Iterator[None]:
    """Trace what eager runs."""
    drops = dict.fromkeys(KEYS, _dropout(aten.dropout.default.py_kernels[DispatchKey.Autograd]))
    with ExitStack() as stack:
        for op in (*OPS, aten.dropout.default):
            kept = {key: kernel for key, kernel in op.py_kernels.items() if key not in KEYS}
            if op is aten.dropout.default:
                kept |= drops
            stack.callback(op._dispatch_cache.clear)
            stack.enter_context(mock.patch.dict(op.py_kernels, kept, clear=True))
            op._dispatch_cache.clear()
        yield


def _dropout(traced: Callable[[Tensor, float, bool], Tensor]) -> Callable[[Tensor, float, bool], Tensor]:
    """Dropout of all elements as eager has it (ATen/native/Dropout.cpp), which draws nothing then."""

    def dropout(input: Tensor, p: float, train: bool) -> Tensor:
        if train and p == 1 and input.numel() > 0:
            return input * input.new_zeros(())
        return traced(input, p, train)

    return dropout
