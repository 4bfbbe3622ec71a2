"""Ops of `torch.ops.graphopt` for packed sequences, whose sizes are arguments: of ATen's they are read from the data.

A packed sequence is [rows, *], step by step, the longest sequence first; `batch_sizes` (int64, on the CPU) says how
many rows each step has. A padded one is [steps, batch, *], or [batch, steps, *] where it is `batch_first`.

- `batch_sizes(lengths, steps)`: from the length of each sequence, in order; it raises what eager raises.
- `sequence_lengths(batch_sizes, batch)`: the way back.
- `pack_rows(padded, batch_sizes, rows, batch_first)`, in the memory of its result alone.
- `pad_rows(packed, batch_sizes, batch, steps, batch_first, value)`: as many steps as are asked for.
- `host_integers(values)`: numbers as a tensor.

Each of `pack_rows` and `pad_rows` is the other's backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from graphopt.kernels.define import define

aten = torch.ops.aten


def some_batch_sizes(rows: int, steps: int, batch: int) -> list[int]:
    """Rows of each step that go with such sizes, with which most memory is needed beside the results.

    That is so where some steps have all sequences, and one less is left behind them: states are put together from two.
    """
    full = max(rows - steps * max(batch - 1, 1), 3)
    sizes = []
    for step in range(steps):
        most = batch if step < full else max(batch - 1, 1)
        sizes.append(min(most, rows - (steps - 1 - step)))
        rows -= sizes[-1]
    return sizes


def _host_integers(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _fake_host_integers(values: Sequence[int]) -> Tensor:
    return torch.empty(len(values), dtype=torch.int64)


def _batch_sizes(lengths: Tensor, steps: int) -> Tensor:
    padded = torch.empty(steps, lengths.shape[0], dtype=torch.bool)
    found: Tensor = aten._pack_padded_sequence.default(padded, lengths, False)[1]
    return found


def _fake_batch_sizes(lengths: Tensor, steps: int) -> Tensor:
    return lengths.new_empty(steps)


def _sequence_lengths(batch_sizes: Tensor, batch: int) -> Tensor:
    return (batch_sizes[:, None] > torch.arange(batch)).sum(0)


def _fake_sequence_lengths(batch_sizes: Tensor, batch: int) -> Tensor:
    return batch_sizes.new_empty(batch)


def _pack_rows(padded: Tensor, batch_sizes: Tensor, rows: int, batch_first: bool) -> Tensor:
    by_step = padded.transpose(0, 1) if batch_first else padded
    packed = padded.new_empty(rows, *padded.shape[2:])
    step = row = 0
    for size, same in groupby(batch_sizes.tolist()):
        steps = len(list(same))
        block = packed[row : row + steps * size].view(steps, size, *padded.shape[2:])
        block.copy_(by_step[step : step + steps, :size])
        step, row = step + steps, row + steps * size
    return packed


def _fake_pack_rows(padded: Tensor, batch_sizes: Tensor, rows: int, batch_first: bool) -> Tensor:  # noqa: ARG001
    return padded.new_empty(rows, *padded.shape[2:])


def _pad_rows(packed: Tensor, batch_sizes: Tensor, batch: int, steps: int, batch_first: bool, value: float) -> Tensor:
    assert batch == batch_sizes[0], "a graph is called with other sequences than it is guarded for"
    padded: Tensor = aten._pad_packed_sequence.default(packed.contiguous(), batch_sizes, batch_first, value, steps)[0]
    return padded


def _fake_pad_rows(
    packed: Tensor,
    batch_sizes: Tensor,  # noqa: ARG001
    batch: int,
    steps: int,
    batch_first: bool,
    value: float,  # noqa: ARG001
) -> Tensor:
    padded = packed.new_empty(steps, batch, *packed.shape[1:])
    return padded.transpose(0, 1) if batch_first else padded


def _keep_for_pack(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    padded, batch_sizes, _rows, ctx.batch_first = inputs
    ctx.save_for_backward(batch_sizes)
    ctx.sizes = padded.shape[:2]


def _differentiate_pack(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    batch, steps = ctx.sizes if ctx.batch_first else reversed(ctx.sizes)
    return pad_rows(grad, *ctx.saved_tensors, batch, steps, ctx.batch_first, 0.0), None, None, None


def _keep_for_pad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    packed, batch_sizes, _batch, _steps, ctx.batch_first, _value = inputs
    ctx.save_for_backward(batch_sizes)
    ctx.rows = packed.shape[0]


def _differentiate_pad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return pack_rows(grad, *ctx.saved_tensors, ctx.rows, ctx.batch_first), *[None] * 5


host_integers = define("host_integers(int[] values) -> Tensor", _host_integers, _fake_host_integers)
batch_sizes = define("batch_sizes(Tensor lengths, int steps) -> Tensor", _batch_sizes, _fake_batch_sizes)
sequence_lengths = define(
    "sequence_lengths(Tensor batch_sizes, int batch) -> Tensor", _sequence_lengths, _fake_sequence_lengths
)
pack_rows = define(
    "pack_rows(Tensor padded, Tensor batch_sizes, int rows, bool batch_first) -> Tensor", _pack_rows, _fake_pack_rows
)
pad_rows = define(
    "pad_rows(Tensor packed, Tensor batch_sizes, int batch, int steps, bool batch_first, float value) -> Tensor",
    _pad_rows,
    _fake_pad_rows,
)
torch.library.register_autograd("graphopt::pack_rows", _differentiate_pack, setup_context=_keep_for_pack)
torch.library.register_autograd("graphopt::pad_rows", _differentiate_pad, setup_context=_keep_for_pad)
