"""Calls of the compiled CPU kernels around a message; torch's own casts and copies are as fast as memory already."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from graphopt.device.dtypes import HALF
from graphopt.kernels.build import cpu_library
from graphopt.kernels.messages import definition
from graphopt.kernels.pointers import KINDS, address


def sum_parts(received: Tensor, parts: int) -> Tensor:
    """See `graphopt.kernels.messages.ops`."""
    if received.dtype not in HALF:
        return definition.sum_parts(received, parts)
    received = received.contiguous()
    total = received.new_empty(received.numel() // parts)
    cpu_library().graphopt_sum_parts(
        *(address(received), ctypes.c_int64(KINDS[received.dtype]), ctypes.c_int64(parts)),
        *(address(total), ctypes.c_int64(total.numel()), torch.get_num_threads()),
    )
    return total
