# mypy: disable-error-code="misc,untyped-decorator,no-untyped-def"
"""What `cuda` launches, in Triton: one program a piece of a parameter, or a block of a wire."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sum_kernel(
    gradients,
    residuals,
    momenta,
    moved,
    rows,
    starts,
    sizes,
    histograms,
    overflow,
    inverse_scale,
    momentum,
    with_residuals: tl.constexpr,
    with_momenta: tl.constexpr,
    PIECE: tl.constexpr,
    TILE: tl.constexpr,
    BINS: tl.constexpr,
):
    """Put gradient × 1/scale + residual (and momentum) into the gradient's own buffer, piece by piece."""
    piece = tl.program_id(0)
    row = tl.load(rows + piece)
    start = tl.load(starts + piece)
    size = tl.load(sizes + row)
    gradient = tl.load(gradients + row).to(tl.pointer_type(tl.float32))
    scale = tl.load(inverse_scale)
    histogram = tl.zeros([BINS], tl.int32)
    for offset in range(0, PIECE, TILE):
        index = start + offset + tl.arange(0, TILE)
        mask = index < size
        x = tl.load(gradient + index, mask=mask, other=0.0) * scale
        if with_momenta:
            velocity = tl.load(momenta + row).to(tl.pointer_type(tl.float32))
            x = tl.load(velocity + index, mask=mask, other=0.0) * momentum + x
            tl.store(tl.load(moved + row).to(tl.pointer_type(tl.float32)) + index, x, mask=mask)
        if with_residuals:
            residual = tl.load(residuals + row).to(tl.pointer_type(tl.float32))
            x = tl.load(residual + index, mask=mask, other=0.0) + x
        tl.store(gradient + index, x, mask=mask)
        magnitude = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        if tl.max(magnitude, 0) >= 0x7F800000:
            tl.store(overflow, 1.0)
        histogram += tl.histogram(magnitude >> 20, BINS)
    bins = tl.arange(0, BINS)
    tl.atomic_add(histograms + row * BINS + bins, histogram, mask=histogram > 0)


@triton.jit
def digit_kernel(
    gradients,
    rows,
    starts,
    sizes,
    histograms,
    prefixes,
    shift: tl.constexpr,
    width: tl.constexpr,
    PIECE: tl.constexpr,
    TILE: tl.constexpr,
    BINS: tl.constexpr,
):
    """Count, for each row, how many magnitudes with the prefix found so far have each next digit of 8 bits."""
    piece = tl.program_id(0)
    row = tl.load(rows + piece)
    start = tl.load(starts + piece)
    size = tl.load(sizes + row)
    gradient = tl.load(gradients + row).to(tl.pointer_type(tl.float32))
    prefix = tl.load(prefixes + row).to(tl.int32)
    histogram = tl.zeros([BINS], tl.int32)
    for offset in range(0, PIECE, TILE):
        index = start + offset + tl.arange(0, TILE)
        x = tl.load(gradient + index, mask=index < size, other=0.0)
        magnitude = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        digit = (magnitude >> shift) & ((1 << width) - 1)
        fits = (magnitude >> (shift + width)) == (prefix >> (shift + width))
        histogram += tl.histogram(tl.where(fits, digit, BINS - 1), BINS)  # a bin that no digit of 10 bits has
    bins = tl.arange(0, BINS)
    tl.atomic_add(histograms + row * BINS + bins, histogram, mask=histogram > 0)


@triton.jit
def tally_kernel(gradients, rows, starts, sizes, lasts, above, equal, PIECE: tl.constexpr, TILE: tl.constexpr):
    """Count, for each piece, the magnitudes above the last one that is sent, and those equal to it."""
    piece = tl.program_id(0)
    row = tl.load(rows + piece)
    start = tl.load(starts + piece)
    size = tl.load(sizes + row)
    gradient = tl.load(gradients + row).to(tl.pointer_type(tl.float32))
    last = tl.load(lasts + row).to(tl.int32)
    more = tl.zeros([TILE], tl.int32)
    same = tl.zeros([TILE], tl.int32)
    for offset in range(0, PIECE, TILE):
        index = start + offset + tl.arange(0, TILE)
        mask = index < size
        magnitude = tl.load(gradient + index, mask=mask, other=0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        more += (mask & (magnitude > last)).to(tl.int32)
        same += (mask & (magnitude == last)).to(tl.int32)
    tl.store(above + piece, tl.sum(more, 0))
    tl.store(equal + piece, tl.sum(same, 0))


@triton.jit
def send_kernel(
    gradients,
    moved,
    rows,
    starts,
    sizes,
    lasts,
    allowed,
    begins,
    values,
    places,
    with_momenta: tl.constexpr,
    PIECE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write the chosen elements of one piece to the wire, in the order of memory, and zeros where they were."""
    piece = tl.program_id(0)
    row = tl.load(rows + piece)
    start = tl.load(starts + piece)
    size = tl.load(sizes + row)
    gradient = tl.load(gradients + row).to(tl.pointer_type(tl.float32))
    value = tl.load(values + row).to(tl.pointer_type(tl.float32))
    place = tl.load(places + row).to(tl.pointer_type(tl.uint16))
    last = tl.load(lasts + row).to(tl.int32)
    ties = tl.load(allowed + piece).to(tl.int32)
    sent = tl.load(begins + piece).to(tl.int32)
    for offset in range(0, PIECE, TILE):
        index = start + offset + tl.arange(0, TILE)
        mask = index < size
        x = tl.load(gradient + index, mask=mask, other=0.0)
        magnitude = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        same = (mask & (magnitude == last)).to(tl.int32)
        first = tl.cumsum(same, 0) <= ties
        taken = ((mask & (magnitude > last)) | ((same > 0) & first)).to(tl.int32)
        target = sent + tl.cumsum(taken, 0) - taken
        tl.store(value + target, x, mask=taken > 0)
        tl.store(place + target, (index & 0xFFFF).to(tl.uint16), mask=taken > 0)
        tl.store(gradient + index, tl.zeros_like(x), mask=taken > 0)
        if with_momenta:
            velocity = tl.load(moved + row).to(tl.pointer_type(tl.float32))
            tl.store(velocity + index, tl.zeros_like(x), mask=taken > 0)
        ties -= tl.sum(same, 0)
        sent += tl.sum(taken, 0)


@triton.jit
def place_kernel(gradients, rows, starts, counts, begins, values, places, TILE: tl.constexpr):
    """Add the values that a wire has for one block to the elements of a gradient at their places."""
    block = tl.program_id(0)
    row = tl.load(rows + block)
    gradient = tl.load(gradients + row).to(tl.pointer_type(tl.float32)) + tl.load(starts + block)
    value = tl.load(values + row).to(tl.pointer_type(tl.float32))
    place = tl.load(places + row).to(tl.pointer_type(tl.uint16))
    begin = tl.load(begins + block)
    end = begin + tl.load(counts + block)
    while begin < end:
        index = begin + tl.arange(0, TILE)
        mask = index < end
        target = gradient + tl.load(place + index, mask=mask, other=0).to(tl.int32)
        held = tl.load(target, mask=mask, other=0.0)
        tl.store(target, held + tl.load(value + index, mask=mask, other=0.0), mask=mask)
        begin += TILE
