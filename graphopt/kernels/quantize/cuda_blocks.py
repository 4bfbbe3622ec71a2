# mypy: disable-error-code="misc,untyped-decorator,no-untyped-def"
"""What a block of a wire is made of, in Triton; `blocks` says what it looks like."""

from __future__ import annotations

import triton
import triton.language as tl

from graphopt.kernels.quantize.blocks import STEP_BYTES

#: Where the levels of a block begin.
LEVELS_BEGIN = tl.constexpr(STEP_BYTES)
_LARGEST_BITS = tl.constexpr(0x7F000000)  # of 2^127: as integers magnitudes are in order, and NaN is above all
_SMALLEST = tl.constexpr(2.0**-100)


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
