# mypy: disable-error-code="misc,untyped-decorator,no-untyped-def"
"""What `cuda` launches for Adam, in Triton: one program a piece of a parameter."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _adam_piece(
    arrays,  # where param, gradient, both averages, the maximum and the copy of a parameter begin
    numbers,  # what is one for the whole parameter, from the scale of its gradient to eps
    start,
    size,
    amsgrad: tl.constexpr,
    copied: tl.constexpr,
    copy_kind: tl.constexpr,
    masked: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    param, gradient, first, second, maximum, copy = arrays
    scale, times, step_size, root, clip, sign, decay, penalty, weight, second_keeps, second_takes, eps = numbers
    for offset in range(0, PIECE, BLOCK):
        index = start + offset + tl.arange(0, BLOCK)
        mask = index < size if masked else None
        g = tl.load(gradient + index, mask=mask).to(tl.float32) * scale
        p = tl.load(param + index, mask=mask)
        m = tl.load(first + index, mask=mask)
        v = tl.load(second + index, mask=mask)
        g = tl.where(g < -clip, -clip, g)
        g = tl.where(g > clip, clip, g) * times * sign
        g = tl.fma(p, tl.zeros_like(p) + penalty, g)
        m = tl.fma(tl.zeros_like(p) + weight, g - m, tl.where(weight < 0, g, m))
        v = tl.fma(second_takes * g, g, v * second_keeps)
        tl.store(first + index, m, mask=mask)
        tl.store(second + index, v, mask=mask)
        if amsgrad:
            highest = tl.load(maximum + index, mask=mask)
            v = tl.where((highest < v) | (v != v), v, highest)
            tl.store(maximum + index, v, mask=mask)
        p = p * decay + tl.div_rn(step_size * m, tl.div_rn(tl.sqrt_rn(v), tl.zeros_like(v) + root) + eps)
        tl.store(param + index, p, mask=mask)
        if copied:
            tl.store(copy + index, p.to(copy_kind), mask=mask)


@triton.jit
def _at(table, row, kind: tl.constexpr, aligned: tl.constexpr):
    pointer = tl.load(table + row).to(tl.pointer_type(kind))
    if aligned:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def adam_kernel(
    parameters,  # not `params`, a name that Triton's launcher takes for itself
    gradients,
    firsts,
    seconds,
    maxima,
    copies,
    rows,
    starts,
    sizes,
    step_sizes,
    roots,
    inverse_scale,
    factor,
    found_inf,
    clip,
    sign,
    decay,
    penalty,
    weight,
    second_keeps,
    second_takes,
    eps,
    amsgrad: tl.constexpr,
    copied: tl.constexpr,
    copy_kind: tl.constexpr,
    kind: tl.constexpr,
    aligned: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program updates one piece of one parameter, with its moments, from addresses in tables."""
    if tl.load(found_inf) == 0:
        piece = tl.program_id(0)
        row = tl.load(rows + piece)
        start = tl.multiple_of(tl.load(starts + piece), BLOCK)
        size = tl.load(sizes + row)
        param = _at(parameters, row, tl.float32, aligned)
        gradient = _at(gradients, row, kind, aligned)
        first = _at(firsts, row, tl.float32, aligned)
        second = _at(seconds, row, tl.float32, aligned)
        maximum = _at(maxima, row, tl.float32, aligned)
        copy = _at(copies, row, copy_kind, aligned)
        arrays = (param, gradient, first, second, maximum, copy)
        step_size = tl.load(step_sizes + row)
        root = tl.load(roots + row)
        scale = tl.load(inverse_scale)
        times = tl.load(factor)
        numbers = (scale, times, step_size, root, clip, sign, decay, penalty, weight, second_keeps, second_takes, eps)
        if start + PIECE <= size:  # a mask would keep the compiler from moving 16 bytes at once
            _adam_piece(arrays, numbers, start, size, amsgrad, copied, copy_kind, False, PIECE, BLOCK)
        else:
            _adam_piece(arrays, numbers, start, size, amsgrad, copied, copy_kind, True, PIECE, BLOCK)
