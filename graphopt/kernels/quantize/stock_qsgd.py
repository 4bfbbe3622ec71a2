"""Gradients rounded at random to few bits, with torch's own ops; `graphopt.kernels.quantize.ops` says what ops mean."""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.kernels.quantize.blocks import BLOCK_ELEMENTS, block_bytes, block_ranges, empty_wire
from graphopt.kernels.quantize.stock_blocks import (
    in_blocks,
    inverse_of,
    note_overflow,
    packed,
    steps_of,
    sum_of_wires,
    true_units,
    write_total,
    write_wire,
)

_LOW = 0xFFFFFFFF


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


def uniform(step: Tensor, seed: int, draw: int, rank: int) -> Tensor:
    """Random multiples of 2^-24 in [0, 1), one block of a parameter a row; four of them to a call of Philox.

    A call's numbers go to elements k, k + 128, k + 256 and k + 384 of the block. `step` is [blocks, 1].
    """
    quarter = BLOCK_ELEMENTS // 4
    calls = torch.arange(len(step) * quarter, device=step.device).view(-1, quarter)
    bits = step.view(torch.int32).long() & _LOW
    words = philox((calls & _LOW, bits, draw & _LOW, (seed >> 32) & _LOW), (seed & _LOW, rank))
    return torch.cat([word >> 8 for word in words], 1).float() * 2.0**-24


def philox(counter: tuple[Tensor, Tensor, int, int], key: tuple[int, int]) -> list[Tensor]:
    """Philox 4x32-10: four random words of 32 bits a counter, in int64 (Salmon et al., SC 2011)."""
    a, b, c, d = torch.broadcast_tensors(*(torch.as_tensor(word, device=counter[0].device) for word in counter))
    first, second = key
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (
            ((right >> 32) & _LOW) ^ b ^ first,
            right & _LOW,
            ((left >> 32) & _LOW) ^ d ^ second,
            left & _LOW,
        )
        first, second = (first + 0x9E3779B9) & _LOW, (second + 0xBB67AE85) & _LOW
    return [a, b, c, d]
