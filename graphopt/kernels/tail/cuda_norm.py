# mypy: disable-error-code="misc,untyped-decorator,no-untyped-def"
"""What `cuda` launches for the norm, in Triton: one program a piece of a parameter."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _added(total, bad, x, power: tl.constexpr):
    x = tl.abs(x.to(tl.float64))
    if power == 0:
        total = tl.maximum(total, x)
        bad += x - x  # which is NaN where x is not finite
    elif power == 1:
        total += x
    elif power == 2:
        total += x * x
    else:
        total += x * x * x
    return total, bad


@triton.jit
def sum_of_powers_kernel(
    addresses,
    rows,
    starts,
    sizes,
    sums,
    power: tl.constexpr,
    kind: tl.constexpr,
    aligned: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program sums |gradient|^power over one piece, in fp64, and flags what is not finite."""
    piece = tl.program_id(0)
    row = tl.load(rows + piece)
    start = tl.multiple_of(tl.load(starts + piece), BLOCK)
    size = tl.load(sizes + row)
    gradient = tl.load(addresses + row).to(tl.pointer_type(kind))
    if aligned:
        gradient = tl.multiple_of(gradient, 16)
    total = tl.zeros([BLOCK], tl.float64)
    bad = tl.zeros([BLOCK], tl.float64)
    if start + PIECE <= size:  # a mask would keep the compiler from reading 16 bytes at once
        for offset in range(0, PIECE, BLOCK):
            x = tl.load(gradient + start + offset + tl.arange(0, BLOCK))
            total, bad = _added(total, bad, x, power)
    else:
        for offset in range(0, PIECE, BLOCK):
            index = start + offset + tl.arange(0, BLOCK)
            x = tl.load(gradient + index, mask=index < size, other=0.0)
            total, bad = _added(total, bad, x, power)
    if power == 0:
        tl.store(sums + piece, tl.max(total) + tl.sum(bad))
    else:
        tl.store(sums + piece, tl.sum(total))
