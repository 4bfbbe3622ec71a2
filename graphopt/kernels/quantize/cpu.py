"""Calls of the compiled CPU kernels that quantize: one row of pointers a gradient."""

from __future__ import annotations

import ctypes
from array import array

import torch
from torch import Tensor

from graphopt.kernels.build import cpu_library
from graphopt.kernels.layout import is_dense, same_order
from graphopt.kernels.pointers import KINDS, address, address_and_count, number, rows_of
from graphopt.kernels.quantize.blocks import block_bytes, block_count, empty_wire


def quantize_(
    gradients: list[Tensor], residuals: list[Tensor], overflow: Tensor, inverse_scale: Tensor | None, parts: int
) -> Tensor:
    """See `graphopt.kernels.quantize.ops`."""
    assert all(tensor.dtype == torch.float32 for tensor in (*gradients, *residuals))
    sizes = _sizes(gradients)
    wire = empty_wire(overflow, sizes, 8, parts)
    rows = _rows(gradients, residuals)
    cpu_library().graphopt_quantize(
        *(*_arguments(rows), address(overflow), _number(inverse_scale), address(wire)),
        *(_count(block_count(sizes, parts)), torch.get_num_threads()),
    )
    return wire


def requantize_(received: Tensor, gradients: list[Tensor], rank: int, parts: int) -> Tensor:
    """See `graphopt.kernels.quantize.ops`."""
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    blocks = block_count(_sizes(gradients), parts) // parts
    assert received.numel() == parts * blocks * block_bytes(8)
    wire = torch.empty(received.numel() // parts, dtype=torch.uint8)
    rows = _rows(gradients, [])
    cpu_library().graphopt_requantize(
        *(address(received), *_arguments(rows), _count(rank * blocks), _count(blocks)),
        *(_count(parts), address(wire), torch.get_num_threads()),
    )
    return wire


def dequantize_(wire: Tensor, gradients: list[Tensor], copies: int, scale: Tensor | None) -> None:
    """See `graphopt.kernels.quantize.ops`."""
    dequantize_qsgd_(wire, gradients, copies, 8, scale)


def qsgd(
    gradients: list[Tensor],
    overflow: Tensor,
    inverse_scale: Tensor | None,
    bits: int,
    parts: int,
    seed: int,
    draw: int,
    rank: int,
) -> Tensor:
    """See `graphopt.kernels.quantize.ops`."""
    sizes = _sizes(gradients)
    wire = empty_wire(overflow, sizes, bits, parts)
    rows = _rows(gradients, [])
    cpu_library().graphopt_qsgd(
        *(*_arguments(rows), address(overflow), _number(inverse_scale), address(wire)),
        *(_count(block_count(sizes, parts)), bits, _count(seed), _count(draw), rank, torch.get_num_threads()),
    )
    return wire


def dequantize_qsgd_(wire: Tensor, gradients: list[Tensor], copies: int, bits: int, scale: Tensor | None) -> None:
    """See `graphopt.kernels.quantize.ops`."""
    blocks, rest = divmod(wire.numel(), copies * block_bytes(bits))
    assert rest == 0 and blocks >= block_count(_sizes(gradients), 1)
    rows = _rows(gradients, [])
    cpu_library().graphopt_dequantize(
        *(address(wire), *_arguments(rows), _count(copies), _count(blocks)),
        *(bits, _number(scale), torch.get_num_threads()),
    )


def _rows(gradients: list[Tensor], residuals: list[Tensor]) -> array[int]:
    """One `Quantized` of blocks.h a gradient; its pointers are good while the tensors live."""
    assert all(is_dense(gradient) for gradient in gradients)
    assert all(map(same_order, residuals, gradients))
    columns = [
        [gradient.numel() for gradient in gradients],
        [KINDS[gradient.dtype] for gradient in gradients],
        [gradient.data_ptr() for gradient in gradients],
        [residual.data_ptr() for residual in residuals] or [0] * len(gradients),
    ]
    return rows_of(columns)


def _sizes(gradients: list[Tensor]) -> list[int]:
    return [gradient.numel() for gradient in gradients]


def _arguments(rows: array[int]) -> tuple[ctypes.c_void_p, ctypes.c_int64]:
    return address_and_count(rows, 4)


def _count(count: int) -> ctypes.c_int64:
    return ctypes.c_int64(count)


def _number(scalar: Tensor | None) -> ctypes.c_double:
    return ctypes.c_double(number(scalar))
