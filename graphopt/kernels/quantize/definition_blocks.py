"""Blocks of levels and back, with torch's own ops; `blocks` says what they look like on the wire."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from graphopt.kernels.layout import flat
from graphopt.kernels.quantize.blocks import BLOCK_ELEMENTS, LARGEST, SMALLEST, STEP_BYTES


def true_units(gradient: Tensor, residual: Tensor | None, inverse_scale: Tensor | None) -> Tensor:
    """What there is to send of a parameter, 1-d, in fp32 and the order of its memory."""
    x = flat(gradient).float()
    x = x if inverse_scale is None else x * inverse_scale
    return x if residual is None else x + flat(residual)


def in_blocks(x: Tensor) -> Tensor:
    """One block a row."""
    return pad(x, (0, -len(x) % BLOCK_ELEMENTS)).view(-1, BLOCK_ELEMENTS)


def steps_of(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """The step of each row's quantization, 0.0 where zeros are sent, and whether the row is finite; one column each."""
    largest = x.abs().amax(1, keepdim=True)
    finite = largest < LARGEST
    step = (((largest / levels).view(torch.int32) + 0xFF) & ~0xFF).view(torch.float32)
    return torch.where(finite & (largest >= SMALLEST), step, 0), finite


def inverse_of(step: Tensor) -> Tensor:
    """1/step, and 0 where it is 0."""
    return torch.where(step > 0, 1 / step, 0)


def write_wire(rows: Tensor, step: Tensor, levels: Tensor) -> None:
    """One block a row of each."""
    rows[:, :STEP_BYTES] = step.view(-1).view(torch.uint8).view(-1, STEP_BYTES)
    rows[:, STEP_BYTES:] = levels


def read_steps(rows: Tensor) -> Tensor:
    """The steps of blocks, one a row."""
    return rows[:, :STEP_BYTES].contiguous().view(torch.float32)


def sum_of_wires(copies: Tensor, bits: int) -> Tensor:
    """The sum of what [copies, blocks, bytes] stand for, one block a row."""
    total, *others = (unpacked(rows[:, STEP_BYTES:], bits) * read_steps(rows) for rows in copies.unbind())
    for other in others:
        total += other
    return total


def write_total(gradient: Tensor, total: Tensor, scale: Tensor | None) -> None:
    """`scale` times a sum, one block a row, into the gradient."""
    total = total.view(-1)[: gradient.numel()]
    flat(gradient).copy_(total if scale is None else total * scale)


def note_overflow(overflow: Tensor, finite: Tensor) -> None:
    """1.0 where a row is not finite, and else what it was."""
    overflow.copy_(torch.maximum(overflow, (~finite).any().float()))


def packed(levels: Tensor, bits: int) -> Tensor:
    """One block a row, int8 levels into bytes of 8 / bits of them."""
    fields = (levels.view(torch.uint8) & (2**bits - 1)).view(len(levels), 8 // bits, BLOCK_ELEMENTS * bits // 8)
    result, *others = torch.unbind(fields, 1)
    for place, field in enumerate(others, 1):
        result = torch.bitwise_or(result, torch.bitwise_left_shift(field, place * bits))
    return result


def unpacked(rows: Tensor, bits: int) -> Tensor:
    """The int8 levels of `packed`; a shift to the right keeps the sign."""
    if bits == 8:
        return rows.view(torch.int8)
    shifts = range(8 - bits, -1, -bits)
    return torch.cat([(rows << shift).view(torch.int8) >> (8 - bits) for shift in shifts], 1)
