"""Gradients as small integers, with torch's own ops; `graphopt.kernels.quantize.ops` says what each op means."""

from __future__ import annotations

import math
from itertools import zip_longest

import torch
from torch import Tensor

from graphopt.kernels.layout import flat, same_order
from graphopt.kernels.quantize.blocks import BLOCK_ELEMENTS, block_bytes, block_ranges, empty_wire
from graphopt.kernels.quantize.definition_blocks import (
    in_blocks,
    inverse_of,
    nearest_levels,
    note_overflow,
    packed,
    steps_of,
    sum_of_wires,
    true_units,
    write_total,
    write_wire,
)
from graphopt.kernels.quantize.philox import uniform

LEVELS = 127


def quantize_(
    gradients: list[Tensor], residuals: list[Tensor], overflow: Tensor, inverse_scale: Tensor | None, parts: int
) -> Tensor:
    """See `graphopt.kernels.quantize.ops`."""
    assert all(tensor.dtype == torch.float32 for tensor in (*gradients, *residuals))
    assert all(map(same_order, residuals, gradients))
    wire = empty_wire(overflow, [g.numel() for g in gradients], 8, parts)
    rows = wire.view(-1, block_bytes(8))
    end = 0
    for (gradient, begin, end), residual in zip_longest(block_ranges(gradients), residuals):
        x = in_blocks(true_units(gradient, residual, inverse_scale))
        step, finite = steps_of(x, LEVELS)
        levels = nearest_levels(x, step)
        write_wire(rows[begin:end], step, levels.view(torch.uint8))
        flat(gradient).copy_((x - levels * step).view(-1)[: gradient.numel()])
        note_overflow(overflow, finite)
    rows[end:] = 0
    return wire


def requantize_(received: Tensor, gradients: list[Tensor], rank: int, parts: int) -> Tensor:
    """See `graphopt.kernels.quantize.ops`."""
    total = sum_of_wires(received.view(parts, -1, block_bytes(8)), 8)
    step, finite = steps_of(total, LEVELS)
    levels = nearest_levels(total, step)
    wire = torch.empty(received.numel() // parts, dtype=torch.uint8, device=received.device)
    write_wire(wire.view(-1, block_bytes(8)), torch.where(finite, step, math.inf), levels.view(torch.uint8))
    error = torch.where(finite, total - levels * step, -0.0)  # which added changes nothing, not even a -0.0
    first, behind = rank * len(total), (rank + 1) * len(total)
    for gradient, begin, end in block_ranges(gradients):
        if max(begin, first) < min(end, behind):
            of_gradient = error[max(begin, first) - first : min(end, behind) - first].view(-1)
            mine = flat(gradient)[max(first - begin, 0) * BLOCK_ELEMENTS :]
            length = min(len(mine), len(of_gradient))
            mine[:length] += of_gradient[:length]
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
    wire = empty_wire(overflow, [g.numel() for g in gradients], bits, parts)
    rows = wire.view(-1, block_bytes(bits))
    most = 2 ** (bits - 1) - 1
    end = 0
    for gradient, begin, end in block_ranges(gradients):
        x = in_blocks(true_units(gradient, None, inverse_scale))
        step, finite = steps_of(x, most)
        magnitude = (x * inverse_of(step)).nan_to_num(0, 0, 0).abs().clamp(max=most)
        lower = magnitude.floor()
        levels = lower + (uniform(step, seed, draw, rank) < magnitude - lower)
        write_wire(rows[begin:end], step, packed(torch.where(x < 0, -levels, levels).to(torch.int8), bits))
        note_overflow(overflow, finite)
    rows[end:] = 0
    return wire


def dequantize_qsgd_(wire: Tensor, gradients: list[Tensor], copies: int, bits: int, scale: Tensor | None) -> None:
    """See `graphopt.kernels.quantize.ops`."""
    rows = wire.view(copies, -1, block_bytes(bits))
    for gradient, begin, end in block_ranges(gradients):
        write_total(gradient, sum_of_wires(rows[:, begin:end], bits), scale)
