"""Calls of the compiled CPU kernels that send the largest elements.

Pointers are only good while the tensors live, so a call keeps the ones it laid out anew until it is over.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor

from graphopt.kernels.build import cpu_library
from graphopt.kernels.layout import as_laid_out, dense, write_back
from graphopt.kernels.pointers import address_and_count, number, rows_of
from graphopt.kernels.sparsify.wire import sections, sparse_wire_bytes


class _Options(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in ("inverse_scale", "momentum", "threshold")]


@contextmanager
def _rows(
    gradients: list[Tensor], states: list[list[Tensor]], counts: list[int], wire: Tensor
) -> Iterator[tuple[ctypes.c_void_p, ctypes.c_int64]]:
    """Address and number of one `SparseRow` of sparsify.cpp a gradient, good inside.

    `states` are residuals, momenta and new momenta; an empty list is a column of nulls. What kernels write into a
    copy of a gradient is in the gradient itself afterwards.
    """
    laid_out = [dense(gradient) for gradient in gradients]
    columns = [
        [as_laid_out(t, like) for t, like in zip(column, laid_out, strict=True)] if column else column
        for column in states
    ]
    assert all(t.dtype == torch.float32 for t in chain(laid_out, *columns))
    places = sections([g.numel() for g in gradients], counts)
    nothing = [0] * len(gradients)
    rows = rows_of(
        [
            [gradient.numel() for gradient in gradients],
            [section.capacity for section in places],
            *([t.data_ptr() for t in column] or nothing for column in (laid_out, *columns)),
            [wire.data_ptr() + section.begin_bytes for section in places],
        ]
    )
    yield address_and_count(rows, 7)
    write_back(laid_out, gradients)


def sparsify_(
    gradients: list[Tensor],
    residuals: list[Tensor],
    overflow: Tensor,
    inverse_scale: Tensor | None,
    counts: list[int],
    threshold: float | None,
) -> Tensor:
    """See `graphopt.kernels.sparsify.ops`."""
    options = _Options(number(inverse_scale), 0.0, threshold or 0.0)
    return _sparsify(gradients, [residuals, [], []], overflow, counts, options)


def sparsify_momentum_(
    gradients: list[Tensor],
    residuals: list[Tensor],
    momenta: list[Tensor],
    overflow: Tensor,
    inverse_scale: Tensor | None,
    counts: list[int],
    momentum: float,
) -> tuple[Tensor, list[Tensor]]:
    """See `graphopt.kernels.sparsify.ops`."""
    moved = [torch.empty_like(dense(gradient)) for gradient in gradients]
    options = _Options(number(inverse_scale), momentum, 0.0)
    return _sparsify(gradients, [residuals, momenta, moved], overflow, counts, options), moved


def _sparsify(
    gradients: list[Tensor], states: list[list[Tensor]], overflow: Tensor, counts: list[int], options: _Options
) -> Tensor:
    wire = torch.empty(sparse_wire_bytes([g.numel() for g in gradients], counts), dtype=torch.uint8)
    found = ctypes.c_float(0.0)
    with _rows(gradients, states, counts, wire) as rows:
        cpu_library().graphopt_sparsify(*rows, ctypes.byref(options), ctypes.byref(found), torch.get_num_threads())
    if found.value:
        overflow.fill_(1.0)
    return wire


def desparsify_(wire: Tensor, gradients: list[Tensor], copies: int, counts: list[int], scale: Tensor | None) -> None:
    """See `graphopt.kernels.sparsify.ops`."""
    numbers = [ctypes.c_int64(copies), ctypes.c_int64(wire.numel() // copies), ctypes.c_double(number(scale))]
    with _rows(gradients, [[], [], []], counts, wire) as rows:
        cpu_library().graphopt_desparsify(*rows, *numbers, torch.get_num_threads())
