"""Which kernels eager takes for a recurrent layer (aten/src/ATen/native/RNN.cpp)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Calls of cells in small ops that a graph may have: each costs 0.17 s of tracing and planning (GRU, two cores).
_MOST_CELLS = 256


def are_few(steps: int, num_layers: int, *, bidirectional: bool) -> bool:
    """Whether the cells of one call may be small ops of a graph."""
    return steps * num_layers * (2 if bidirectional else 1) <= _MOST_CELLS


def by_cudnn(input: Tensor) -> bool:
    """ATen's own rule (`use_cudnn` in RNN.cpp); with autocast the input is of its dtype then."""
    known = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    here = input.device.type == "cuda" and torch.version.hip is None and input.dtype in known
    return here and torch.backends.cudnn.enabled and torch.backends.cudnn.is_available() and input.numel() > 0


def by_onednn(tensors: Sequence[Tensor]) -> bool:
    """ATen's own rule (`use_mkldnn` in RNN.cpp)."""
    if not torch._C._get_mkldnn_enabled() or any(t.device.type != "cpu" for t in tensors) or not tensors[0].numel():
        return False
    dtype = tensors[0].dtype
    if dtype is torch.float16:
        return not torch.is_grad_enabled() and torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype is torch.float32 or (dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
