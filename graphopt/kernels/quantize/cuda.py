"""Gradients as small integers on CUDA, in Triton: a program a block, and nothing that waits for the device."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from graphopt.kernels.layout import is_dense, same_order
from graphopt.kernels.pieces import addresses
from graphopt.kernels.quantize.blocks import BLOCK_ELEMENTS, block_bytes, block_count, blocks_of, empty_wire
from graphopt.kernels.quantize.cuda_qsgd import qsgd_kernel
from graphopt.kernels.quantize.cuda_quantize import dequantize_kernel, quantize_kernel, requantize_kernel
from graphopt.kernels.triton_dtypes import TRITON_DTYPES


def quantize_(
    gradients: list[Tensor], residuals: list[Tensor], overflow: Tensor, inverse_scale: Tensor | None, parts: int
) -> Tensor:
    """See `graphopt.kernels.quantize.ops`."""
    assert all(tensor.dtype == torch.float32 for tensor in (*gradients, *residuals))
    assert all(map(same_order, residuals, gradients))
    wire = _wire_of(gradients, overflow, 8, parts)
    for table, count, _ in _launches(gradients):
        quantize_kernel[(count,)](
            *(addresses(gradients), addresses(residuals or gradients), *table, _one_of(inverse_scale, wire)),
            *(overflow, wire),
            with_residual=bool(residuals),
            BYTES=block_bytes(8),
            BLOCK=BLOCK_ELEMENTS,
            enable_fp_fusion=False,
        )
    return wire


def requantize_(received: Tensor, gradients: list[Tensor], rank: int, parts: int) -> Tensor:
    """See `graphopt.kernels.quantize.ops`."""
    blocks = received.numel() // parts // block_bytes(8)
    wire = torch.zeros(received.numel() // parts, dtype=torch.uint8, device=received.device)
    for table, count, _ in _launches(gradients, (rank * blocks, (rank + 1) * blocks)):
        requantize_kernel[(count,)](
            *(addresses(gradients), received, *table, rank * blocks, blocks, wire),
            parts=parts,
            INFINITY=math.inf,
            BYTES=block_bytes(8),
            BLOCK=BLOCK_ELEMENTS,
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
    wire = _wire_of(gradients, overflow, bits, parts)
    key = _signed(seed & 0xFFFFFFFF | rank << 32, 64)
    for table, count, kind in _launches(gradients):
        qsgd_kernel[(count,)](
            *(addresses(gradients), *table, _one_of(inverse_scale, wire), overflow, wire),
            *(_signed(draw, 32), _signed(seed >> 32, 32), key),
            bits=bits,
            kind=kind,
            BYTES=block_bytes(bits),
            QUARTER=BLOCK_ELEMENTS // 4,
        )
    return wire


def dequantize_qsgd_(wire: Tensor, gradients: list[Tensor], copies: int, bits: int, scale: Tensor | None) -> None:
    """See `graphopt.kernels.quantize.ops`."""
    blocks = wire.numel() // copies // block_bytes(bits)
    for table, count, kind in _launches(gradients):
        dequantize_kernel[(count,)](
            *(addresses(gradients), wire, *table, blocks, _one_of(scale, wire)),
            copies=copies,
            bits=bits,
            kind=kind,
            BYTES=block_bytes(bits),
            BLOCK=BLOCK_ELEMENTS,
        )


def _wire_of(gradients: list[Tensor], overflow: Tensor, bits: int, parts: int) -> Tensor:
    """A new wire, the blocks behind those of the gradients zeros."""
    sizes = [gradient.numel() for gradient in gradients]
    wire = empty_wire(overflow, sizes, bits, parts)
    wire[block_count(sizes, 1) * block_bytes(bits) :].zero_()
    return wire


def _launches(
    gradients: list[Tensor], blocks: tuple[int, int] | None = None
) -> list[tuple[tuple[Tensor, ...], int, Any]]:
    """The table, the number of programs and Triton's dtype of each launch; of some of the blocks, or of all."""
    assert all(is_dense(gradient) for gradient in gradients)
    sizes = tuple(gradient.numel() for gradient in gradients)
    result = []
    for dtype, kind in TRITON_DTYPES.items():
        rows = tuple(row for row, gradient in enumerate(gradients) if gradient.dtype == dtype)
        table = _table(sizes, rows, blocks or (0, block_count(sizes, 1)), gradients[0].device) if rows else None
        if table and len(table[1]):
            result.append((table, len(table[1]), kind))
    return result


@lru_cache(maxsize=64)
def _table(
    sizes: tuple[int, ...], rows: tuple[int, ...], blocks: tuple[int, int], device: torch.device
) -> tuple[Tensor, ...]:
    """Of each tensor its size; of each block, of these tensors and this range, its number, tensor and first element."""
    firsts = [0, *accumulate(blocks_of(size) for size in sizes)]
    pieces = [(block, row) for row in rows for block in range(firsts[row], firsts[row + 1])]
    pieces = [(block, row) for block, row in pieces if blocks[0] <= block < blocks[1]]
    columns = zip(*((block, row, (block - firsts[row]) * BLOCK_ELEMENTS) for block, row in pieces), strict=True)
    return torch.tensor(sizes, device=device), *(torch.tensor(column, device=device) for column in columns)


def _one_of(scalar: Tensor | None, like: Tensor) -> Tensor:
    """The scalar, or 1.0."""
    return torch.ones((), device=like.device) if scalar is None else scalar


def _signed(number: int, bits: int) -> int:
    """The number of so many bits, two's complement, that has the number's last bits."""
    half = 1 << (bits - 1)
    return (number + half) % (2 * half) - half
