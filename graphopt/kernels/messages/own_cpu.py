"""Calls of the compiled CPU kernels around a message; torch's own casts and copies are as fast as memory already."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from graphopt.kernels.build import cpu_library
from graphopt.kernels.messages import stock

_KINDS = {torch.float16: 1, torch.bfloat16: 2}


def sum_parts(received: Tensor, parts: int) -> Tensor:
    """See `graphopt.kernels.messages.ops`."""
    if received.dtype not in _KINDS:
        return stock.sum_parts(received, parts)
    received = received.contiguous()
    total = received.new_empty(received.numel() // parts)
    cpu_library().graphopt_sum_parts(
        *(ctypes.c_void_p(received.data_ptr()), ctypes.c_int64(_KINDS[received.dtype]), ctypes.c_int64(parts)),
        *(ctypes.c_void_p(total.data_ptr()), ctypes.c_int64(total.numel()), torch.get_num_threads()),
    )
    return total
