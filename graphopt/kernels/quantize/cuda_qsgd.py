# mypy: disable-error-code="misc,untyped-decorator,no-untyped-def"
"""What `cuda` launches to round at random, in Triton: one program a block; the bits are those of torch's ops."""

from __future__ import annotations

import triton
import triton.language as tl

from graphopt.kernels.quantize.cuda_blocks import LEVELS_BEGIN, in_steps, is_finite, largest_bits, step_of


@triton.jit
def _rounded_at_random(x, word, step, most):
    """x in steps, up or down by a random word of 32 bits."""
    magnitude = tl.minimum(tl.abs(in_steps(x, step)), most)
    lower = tl.floor(magnitude)
    random = (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
    levels = (lower + (random < magnitude - lower).to(tl.float32)).to(tl.int32)
    return tl.where(x < 0, -levels, levels)


@triton.jit
def qsgd_kernel(
    addresses,
    sizes,
    blocks,
    rows,
    starts,
    inverse_scale,
    overflow,
    wire,
    draw,
    seed_high,
    key,
    bits: tl.constexpr,
    kind: tl.constexpr,
    BYTES: tl.constexpr,
    QUARTER: tl.constexpr,
):
    """One program rounds one block of one gradient at random to few bits, into its place of the wire."""
    piece = tl.program_id(0)
    row = tl.load(rows + piece)
    start = tl.load(starts + piece)
    lane = tl.arange(0, QUARTER)
    left = tl.load(sizes + row) - start
    gradient = tl.load(addresses + row).to(tl.pointer_type(kind)) + start + lane
    scale = tl.load(inverse_scale)
    a = tl.load(gradient, mask=lane < left, other=0.0).to(tl.float32) * scale
    b = tl.load(gradient + QUARTER, mask=lane + QUARTER < left, other=0.0).to(tl.float32) * scale
    c = tl.load(gradient + 2 * QUARTER, mask=lane + 2 * QUARTER < left, other=0.0).to(tl.float32) * scale
    d = tl.load(gradient + 3 * QUARTER, mask=lane + 3 * QUARTER < left, other=0.0).to(tl.float32) * scale
    largest = tl.maximum(tl.maximum(largest_bits(a), largest_bits(b)), tl.maximum(largest_bits(c), largest_bits(d)))
    if not is_finite(largest):
        tl.store(overflow, 1.0)
    most = (1 << (bits - 1)) - 1.0
    step = step_of(largest, most)
    nothing = tl.zeros([QUARTER], tl.int32)
    calls = (start // 4).to(tl.int32) + lane
    in_step = nothing + step.to(tl.int32, bitcast=True)
    r, s, t, u = tl.philox(key, calls, in_step, nothing + draw, nothing + seed_high)
    a = _rounded_at_random(a, r, step, most)
    b = _rounded_at_random(b, s, step, most)
    c = _rounded_at_random(c, t, step, most)
    d = _rounded_at_random(d, u, step, most)
    to = wire + tl.load(blocks + piece) * BYTES
    tl.store(to.to(tl.pointer_type(tl.float32)), step)
    to += LEVELS_BEGIN + lane
    if bits == 8:
        tl.store(to, (a & 255).to(tl.uint8))
        tl.store(to + QUARTER, (b & 255).to(tl.uint8))
        tl.store(to + 2 * QUARTER, (c & 255).to(tl.uint8))
        tl.store(to + 3 * QUARTER, (d & 255).to(tl.uint8))
    elif bits == 4:
        tl.store(to, ((a & 15) | (c & 15) << 4).to(tl.uint8))
        tl.store(to + QUARTER, ((b & 15) | (d & 15) << 4).to(tl.uint8))
    else:
        tl.store(to, ((a & 3) | (b & 3) << 2 | (c & 3) << 4 | (d & 3) << 6).to(tl.uint8))
