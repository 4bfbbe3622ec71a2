"""Blocks of levels and back, with torch's own ops; `blocks` says what they look like on the wire.

Shapes: n is the number of elements of a parameter, b of its blocks, e = BLOCK_ELEMENTS of the elements of one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from graphopt.kernels.layout import flat
from graphopt.kernels.quantize.blocks import BLOCK_ELEMENTS, LARGEST, SMALLEST, STEP_BYTES


def true_units(gradient: Tensor, residual: Tensor | None, inverse_scale: Tensor | None) -> Tensor:
    """What there is to send of a parameter, gradient × inverse_scale + residual: [n], fp32, in the order of its memory.

    Gradient and residual are dense and of one shape and layout; None stands for 1 and for 0.
    """
    x = flat(gradient).float()
    x = x if inverse_scale is None else x * inverse_scale
    return x if residual is None else x + flat(residual)


def in_blocks(x: Tensor) -> Tensor:
    """[n] as [b, e], filled up with zeros."""
    return pad(x, (0, -len(x) % BLOCK_ELEMENTS)).view(-1, BLOCK_ELEMENTS)


def steps_of(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Of each row of [b, e], fp32: its step, 0.0 where zeros are sent, and whether it is finite, both [b, 1].

    `levels` is the largest level; a step is the largest magnitude over it, rounded up to 16 significant bits.
    """
    largest = x.abs().amax(1, keepdim=True)
    finite = largest < LARGEST
    step = (((largest / levels).view(torch.int32) + 0xFF) & ~0xFF).view(torch.float32)
    return torch.where(finite & (largest >= SMALLEST), step, 0), finite


def inverse_of(step: Tensor) -> Tensor:
    """1/step, and 0 where it is 0."""
    return torch.where(step > 0, 1 / step, 0)


def nearest_levels(x: Tensor, step: Tensor) -> Tensor:
    """x / step rounded to the nearest, ties to even, and 0 where that is no number: int8 of [b, e] by [b, 1]."""
    return (x * inverse_of(step)).round().nan_to_num(0, 0, 0).to(torch.int8)


def write_wire(rows: Tensor, step: Tensor, levels: Tensor) -> None:
    """Steps [b, 1] and levels, uint8 [b, bytes of the levels], into blocks of a wire, [b, bytes of a block]."""
    rows[:, :STEP_BYTES] = step.view(-1).view(torch.uint8).view(-1, STEP_BYTES)
    rows[:, STEP_BYTES:] = levels


def read_steps(rows: Tensor) -> Tensor:
    """The steps, [b, 1], of blocks of a wire, [b, bytes of a block]."""
    return rows[:, :STEP_BYTES].contiguous().view(torch.float32)


def sum_of_wires(copies: Tensor, bits: int) -> Tensor:
    """The sum in fp32, [b, e], of what wires [copies, b, bytes of a block] stand for, in their order."""
    total, *others = (unpacked(rows[:, STEP_BYTES:], bits) * read_steps(rows) for rows in copies.unbind())
    for other in others:
        total += other
    return total


def write_total(gradient: Tensor, total: Tensor, scale: Tensor | None) -> None:
    """`scale` times a sum, [b, e], into a dense gradient of n elements; None stands for 1."""
    total = total.view(-1)[: gradient.numel()]
    flat(gradient).copy_(total if scale is None else total * scale)


def note_overflow(overflow: Tensor, finite: Tensor) -> None:
    """Raise the fp32 scalar `overflow` to 1.0 where one of `finite`, [b, 1], is False."""
    overflow.copy_(torch.maximum(overflow, (~finite).any().float()))


def packed(levels: Tensor, bits: int) -> Tensor:
    """int8 levels [b, e] as bytes, uint8 [b, e × bits / 8], of 8 / bits of them each."""
    fields = (levels.view(torch.uint8) & (2**bits - 1)).view(len(levels), 8 // bits, BLOCK_ELEMENTS * bits // 8)
    result, *others = torch.unbind(fields, 1)
    for place, field in enumerate(others, 1):
        result = torch.bitwise_or(result, torch.bitwise_left_shift(field, place * bits))
    return result


def unpacked(rows: Tensor, bits: int) -> Tensor:
    """The int8 levels [b, e] of `packed`'s bytes; a shift to the right keeps the sign."""
    if bits == 8:
        return rows.view(torch.int8)
    shifts = range(8 - bits, -1, -bits)
    return torch.cat([(rows << shift).view(torch.int8) >> (8 - bits) for shift in shifts], 1)
