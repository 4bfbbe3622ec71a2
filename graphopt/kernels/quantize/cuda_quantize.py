# mypy: disable-error-code="misc,untyped-decorator,no-untyped-def"
"""What `cuda` launches for 8-bit gradients, in Triton: one program a block.

The bits are those of torch's ops: gradient × inverse_scale and its residual are rounded one by one. Products of steps
and levels are exact, so that the compiler may fuse those as it likes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphopt.kernels.quantize.cuda_blocks import LEVELS_BEGIN, in_steps, is_finite, largest_bits, step_of

_ROUNDER = tl.constexpr(1.5 * 2**23)  # added to a small number it leaves the nearest integer, ties to even


@triton.jit
def _store_wire(to, lane, step, levels):
    tl.store(to.to(tl.pointer_type(tl.float32)), step)
    tl.store(to + LEVELS_BEGIN + lane, levels.to(tl.int8).to(tl.uint8, bitcast=True))


@triton.jit
def quantize_kernel(
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
    """One program writes one block of gradient × 1/scale + residual to the wire, and what is left to the residual."""
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
def requantize_kernel(
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
    """One program adds up one block of this rank's part from all ranks, and writes it to the wire again."""
    piece = tl.program_id(0)
    row = tl.load(rows + piece)
    block = tl.load(blocks + piece) - first
    lane = tl.arange(0, BLOCK)
    index = tl.load(starts + piece) + lane
    mask = index < tl.load(sizes + row)
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(parts):
        source = received + (part * count + block) * BYTES
        levels = tl.load(source + LEVELS_BEGIN + lane).to(tl.int8, bitcast=True).to(tl.float32)
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
def dequantize_kernel(
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
    """One program adds up one block of all copies of a wire, into the gradient."""
    piece = tl.program_id(0)
    row = tl.load(rows + piece)
    block = tl.load(blocks + piece)
    lane = tl.arange(0, BLOCK)
    length: tl.constexpr = BLOCK * bits // 8
    shift = 32 - bits - bits * (lane // length)
    total = tl.zeros([BLOCK], tl.float32)
    for copy in tl.static_range(copies):
        source = wire + (copy * count + block) * BYTES
        levels = (tl.load(source + LEVELS_BEGIN + lane % length).to(tl.int32) << shift) >> (32 - bits)
        total += levels.to(tl.float32) * tl.load(source.to(tl.pointer_type(tl.float32)))
    index = tl.load(starts + piece) + lane
    gradient = tl.load(addresses + row).to(tl.pointer_type(kind)) + index
    tl.store(gradient, (total * tl.load(scale)).to(kind), mask=index < tl.load(sizes + row))
