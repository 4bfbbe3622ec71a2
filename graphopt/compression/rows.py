"""Gradients on their way to the ranks whose rows they are: what is sent instead of a reduce-scatter, and what comes.

A wire holds, rank by rank, that rank's rows of each gradient, which are cut into blocks by themselves. So what a rank
receives are all ranks' wires of its own rows, one behind the other, and their sum goes by rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from graphopt import kernels
from graphopt.base.parts import part_of
from graphopt.base.rounding import round_up
from graphopt.compression.bucket import Shape
from graphopt.compression.methods import QSGD, EightBit, HalfCast
from graphopt.kernels.build import own_cpu_kernels
from graphopt.kernels.quantize.blocks import BLOCK_ELEMENTS, block_bytes, blocks_of

_ops = torch.ops.graphopt

#: What can take the place of a reduce-scatter: methods whose sums of parts are the parts of their sums.
ByRows = EightBit | HalfCast | QSGD
#: Bytes an element of a rank's largest rows that torch's own ops hold while they quantize them, round them at random,
#: and read them: measured with rows of 12,800 elements (1 December 2026, torch 2.13.0).
_STOCK_QUANTIZE, _STOCK_QSGD, _STOCK_READ = 35, 42, 24


def part_bytes(method: ByRows, shapes: Sequence[Shape], world: int) -> list[int]:
    """Of the wire of gradients of these shapes, the bytes that go to each rank; none gets more than the first."""
    return [_wire_bytes(method, [_rows_elements(shape, rank, world) for shape in shapes]) for rank in range(world)]


def encode(
    method: ByRows,
    gradients: list[Tensor],
    residuals: list[Tensor],
    overflow: Tensor,
    inverse_scale: Tensor | None,
    *,
    draw: int,
    rank: int,
    world: int,
) -> Tensor:
    """The wire, uint8 [bytes]; `overflow` becomes 1.0 where a gradient is not finite.

    Where residuals are given, of the shapes of the gradients, these hold afterwards what is kept back.
    """
    parts = [by_rank for rank in range(world) for by_rank in _rows_of(gradients, rank, world)]
    if isinstance(method, HalfCast):
        wire: Tensor = _ops.pack.default(parts, method.dtype)
        return wire.view(torch.uint8)
    if isinstance(method, QSGD):
        numbers = method.bits, 1, method.seed, draw, rank
        packed: Tensor = _ops.qsgd.default(parts, overflow, inverse_scale, *numbers)
        return packed
    kept = [by_rank for rank in range(world) for by_rank in _rows_of(residuals, rank, world)]
    rounded: Tensor = _ops.quantize_.default(parts, kept, overflow, inverse_scale, 1)
    return rounded


def decode(
    method: ByRows, received: Tensor, rows: list[Tensor], overflow: Tensor, scale: Tensor | None, *, world: int
) -> None:
    """Write the sums of what all ranks sent, in rank order, into a rank's rows, fp32, times `scale` if quantized."""
    if received.numel() == 0:
        return
    if not isinstance(method, HalfCast):
        _ops.dequantize_qsgd_.default(received, rows, world, _bits(method), scale)
        return
    parts = received.view(method.dtype).view(world, -1)
    sizes = [each.numel() for each in rows]
    first, *others = [part.split(sizes) for part in parts]
    for place, own in enumerate(rows):
        own.copy_(first[place].view_as(own))
        for other in others:
            own.add_(other[place].view_as(own))
    note_not_finite(rows, overflow)


def note_not_finite(rows: list[Tensor], overflow: Tensor) -> None:
    """`overflow` becomes 1.0 where one of the rows is not finite."""
    some = [each for each in rows if each.numel()]
    if some:
        overflow.clamp_min_(kernels.gradient_norm(some, math.inf)[1])


def encode_scratch_bytes(method: ByRows, shapes: Sequence[Shape], world: int, device: torch.device) -> int:
    """Memory beside the wire."""
    if isinstance(method, HalfCast) or _has_kernels(device):
        return 0
    most = max(round_up(_rows_elements(shape, 0, world), BLOCK_ELEMENTS) for shape in shapes)
    return most * (_STOCK_QSGD if isinstance(method, QSGD) else _STOCK_QUANTIZE)


def decode_scratch_bytes(method: ByRows, rows: Sequence[Shape], device: torch.device) -> int:
    """Memory beside what was received, and the rows: on a CPU a half part in fp32."""
    if isinstance(method, HalfCast):
        return 4 * max(map(math.prod, rows)) if device.type == "cpu" else 0
    return 0 if _has_kernels(device) else _STOCK_READ * max(map(math.prod, rows))


def copies_scratch_bytes(method: ByRows, rows: Sequence[Shape], copies: int) -> int:
    """Memory of summing rows over copies: the wire, all copies' wires, and what a backend holds of both."""
    own = _wire_bytes(method, [math.prod(shape) for shape in rows])
    # of each copy's wire, where all are gathered; else a part of each, and the sums of all parts
    wires = 2 * copies if copies < 3 or isinstance(method, QSGD) else 4
    return own * (1 + wires)


def _has_kernels(device: torch.device) -> bool:
    return own_cpu_kernels(device) or device.type == "cuda"


def _bits(method: EightBit | QSGD) -> int:
    return method.bits if isinstance(method, QSGD) else 8


def _wire_bytes(method: ByRows, elements: Sequence[int]) -> int:
    if isinstance(method, HalfCast):
        return method.dtype.itemsize * sum(elements)
    return block_bytes(_bits(method)) * sum(map(blocks_of, elements))


def _rows_elements(shape: Shape, rank: int, world: int) -> int:
    part = part_of(shape[0], rank, world)
    elements: int = (part.stop - part.start) * math.prod(shape[1:])
    return elements


def _rows_of(tensors: Sequence[Tensor], rank: int, world: int) -> list[Tensor]:
    return [tensor[part_of(len(tensor), rank, world)] for tensor in tensors]
