# mypy: disable-error-code="misc,untyped-decorator,no-untyped-def"
"""8-bit gradients on CUDA, in Triton: a program a block, and nothing that waits for the device.

The bits are those of torch's ops: gradient × inverse_scale and its residual are rounded one by one. Products of steps
and levels are exact, so that the compiler may fuse those as it likes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphopt.kernels.layout import is_dense, same_order
from graphopt.kernels.pieces import addresses
from graphopt.kernels.quantize.blocks import BLOCK_ELEMENTS, STEP_BYTES, block_bytes, block_count, blocks_of, empty_wire

KINDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_LARGEST_BITS = tl.constexpr(0x7F000000)  # of 2^127: as integers magnitudes are in order, and NaN is above all
_SMALLEST = tl.constexpr(2.0**-100)
_ROUNDER = tl.constexpr(1.5 * 2**23)  # added to a small number it leaves the nearest integer, ties to even
_LEVELS = tl.constexpr(STEP_BYTES)  # where those of a block begin


@triton.jit
def largest_bits(x):
    """Of the largest magnitude."""
    return tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF)


@triton.jit
def is_finite(largest):
    """Whether a block may be sent, by the bits of its largest magnitude."""
    return largest < _LARGEST_BITS


@triton.jit
def step_of(largest, most):
    """The step of a block by the bits of its largest magnitude; 0 where it sends zeros."""
    value = largest.to(tl.float32, bitcast=True)
    step = ((tl.div_rn(value, most).to(tl.int32, bitcast=True) + 0xFF) & -256).to(tl.float32, bitcast=True)
    return tl.where(is_finite(largest) & (value >= _SMALLEST), step, 0.0)


@triton.jit
def in_steps(x, step):
    """x / step, and 0 where that is."""
    inverse = tl.div_rn(1.0, tl.where(step > 0, step, 1.0))
    return tl.where(step > 0, x, 0.0) * inverse


@triton.jit
def _store_wire(to, lane, step, levels):
    tl.store(to.to(tl.pointer_type(tl.float32)), step)
    tl.store(to + _LEVELS + lane, levels.to(tl.int8).to(tl.uint8, bitcast=True))


@triton.jit
def _quantize_kernel(
    addresses,
    residuals,
    sizes,
    blocks,
    rows,
    starts,
    inverse_scale,
    overflow,
    wire,
    with_residual: tl.constexpr,
    BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    piece = tl.program_id(0)
    row = tl.load(rows + piece)
    lane = tl.arange(0, BLOCK)
    index = tl.load(starts + piece) + lane
    mask = index < tl.load(sizes + row)
    gradient = tl.load(addresses + row).to(tl.pointer_type(tl.float32)) + index
    x = tl.load(gradient, mask=mask, other=0.0) * tl.load(inverse_scale)
    if with_residual:
        residual = tl.load(residuals + row).to(tl.pointer_type(tl.float32)) + index
        x += tl.load(residual, mask=mask, other=0.0)
    largest = largest_bits(x)
    step = step_of(largest, 127.0)
    levels = (in_steps(x, step) + _ROUNDER) - _ROUNDER
    if not is_finite(largest):
        tl.store(overflow, 1.0)
    _store_wire(wire + tl.load(blocks + piece) * BYTES, lane, step, levels)
    tl.store(gradient, x - levels * step, mask=mask)


@triton.jit
def _requantize_kernel(
    addresses,
    received,
    sizes,
    blocks,
    rows,
    starts,
    first,
    count,
    wire,
    parts: tl.constexpr,
    INFINITY: tl.constexpr,
    BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    piece = tl.program_id(0)
    row = tl.load(rows + piece)
    block = tl.load(blocks + piece) - first
    lane = tl.arange(0, BLOCK)
    index = tl.load(starts + piece) + lane
    mask = index < tl.load(sizes + row)
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(parts):
        source = received + (part * count + block) * BYTES
        levels = tl.load(source + _LEVELS + lane).to(tl.int8, bitcast=True).to(tl.float32)
        total += levels * tl.load(source.to(tl.pointer_type(tl.float32)))
    largest = largest_bits(total)
    step = step_of(largest, 127.0)
    levels = (in_steps(total, step) + _ROUNDER) - _ROUNDER
    _store_wire(wire + block * BYTES, lane, tl.where(is_finite(largest), step, INFINITY), levels)
    gradient = tl.load(addresses + row).to(tl.pointer_type(tl.float32)) + index
    if is_finite(largest):
        kept = tl.load(gradient, mask=mask, other=0.0) + (total - levels * step)
        tl.store(gradient, kept, mask=mask)


@triton.jit
def _dequantize_kernel(
    addresses,
    wire,
    sizes,
    blocks,
    rows,
    starts,
    count,
    scale,
    copies: tl.constexpr,
    bits: tl.constexpr,
    kind: tl.constexpr,
    BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    piece = tl.program_id(0)
    row = tl.load(rows + piece)
    block = tl.load(blocks + piece)
    lane = tl.arange(0, BLOCK)
    length: tl.constexpr = BLOCK * bits // 8
    shift = 32 - bits - bits * (lane // length)
    total = tl.zeros([BLOCK], tl.float32)
    for copy in tl.static_range(copies):
        source = wire + (copy * count + block) * BYTES
        levels = (tl.load(source + _LEVELS + lane % length).to(tl.int32) << shift) >> (32 - bits)
        total += levels.to(tl.float32) * tl.load(source.to(tl.pointer_type(tl.float32)))
    index = tl.load(starts + piece) + lane
    gradient = tl.load(addresses + row).to(tl.pointer_type(kind)) + index
    tl.store(gradient, (total * tl.load(scale)).to(kind), mask=index < tl.load(sizes + row))


def quantize_(
    gradients: list[Tensor], residuals: list[Tensor], overflow: Tensor, inverse_scale: Tensor | None, parts: int
) -> Tensor:
    """See `graphopt.kernels.quantize.ops`."""
    assert all(tensor.dtype == torch.float32 for tensor in (*gradients, *residuals))
    assert all(map(same_order, residuals, gradients))
    wire = wire_of(gradients, overflow, 8, parts)
    for table, count, _ in launches(gradients):
        _quantize_kernel[(count,)](
            *(addresses(gradients), addresses(residuals or gradients), *table, one_of(inverse_scale, wire)),
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
    for table, count, _ in launches(gradients, (rank * blocks, (rank + 1) * blocks)):
        _requantize_kernel[(count,)](
            *(addresses(gradients), received, *table, rank * blocks, blocks, wire),
            parts=parts,
            INFINITY=math.inf,
            BYTES=block_bytes(8),
            BLOCK=BLOCK_ELEMENTS,
        )
    return wire


def dequantize_(wire: Tensor, gradients: list[Tensor], copies: int, scale: Tensor | None) -> None:
    """See `graphopt.kernels.quantize.ops`."""
    dequantize_bits_(wire, gradients, copies, 8, scale)


def dequantize_bits_(wire: Tensor, gradients: list[Tensor], copies: int, bits: int, scale: Tensor | None) -> None:
    """With levels of so many bits."""
    blocks = wire.numel() // copies // block_bytes(bits)
    for table, count, kind in launches(gradients):
        _dequantize_kernel[(count,)](
            *(addresses(gradients), wire, *table, blocks, one_of(scale, wire)),
            copies=copies,
            bits=bits,
            kind=kind,
            BYTES=block_bytes(bits),
            BLOCK=BLOCK_ELEMENTS,
        )


def wire_of(gradients: list[Tensor], overflow: Tensor, bits: int, parts: int) -> Tensor:
    """A new wire, the blocks behind those of the gradients zeros."""
    sizes = [gradient.numel() for gradient in gradients]
    wire = empty_wire(overflow, sizes, bits, parts)
    wire[block_count(sizes, 1) * block_bytes(bits) :].zero_()
    return wire


def launches(
    gradients: list[Tensor], blocks: tuple[int, int] | None = None
) -> list[tuple[tuple[Tensor, ...], int, tl.dtype]]:
    """The table, the number of programs and Triton's dtype of each launch; of some of the blocks, or of all."""
    assert all(is_dense(gradient) for gradient in gradients)
    sizes = tuple(gradient.numel() for gradient in gradients)
    result = []
    for dtype, kind in KINDS.items():
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


def one_of(scalar: Tensor | None, like: Tensor) -> Tensor:
    """The scalar, or 1.0."""
    return torch.ones((), device=like.device) if scalar is None else scalar
