"""Calls of the compiled CPU kernels: rows of pointers in, and torch's ops for what they do not take.

They take dense fp32 parameters and state, and gradients and copies in fp32, fp16 or bf16. Pointers are only good
while the tensors live, so a call keeps the ones it laid out anew until it is over.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from graphopt.device.dtypes import HALF
from graphopt.kernels.build import cpu_library
from graphopt.kernels.layout import as_laid_out, dense, is_dense, same_order
from graphopt.kernels.pointers import KINDS, address_and_count, number, rows_of
from graphopt.kernels.tail import definition, definition_update

_POWERS = {1.0: 1, 2.0: 2, 3.0: 3, math.inf: 0}


class _Scaling(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in ("inverse_scale", "clip_value", "factor", "sign")]


class _AdamOptions(ctypes.Structure):
    _fields_ = [
        ("scaling", _Scaling),
        *((name, ctypes.c_double) for name in ("lr", "beta1", "beta2", "weight_decay", "eps")),
        ("decoupled", ctypes.c_int64),
    ]


class _SgdOptions(ctypes.Structure):
    _fields_ = [
        ("scaling", _Scaling),
        *((name, ctypes.c_double) for name in ("lr", "momentum", "dampening", "weight_decay")),
        ("nesterov", ctypes.c_int64),
        ("first", ctypes.c_int64),
    ]


@contextmanager
def _rows(
    params: list[Tensor],
    gradients: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    maximum: list[Tensor],
    steps: list[Tensor],
    copies: list[Tensor],
) -> Iterator[tuple[ctypes.c_void_p, ctypes.c_int64]]:
    """Address and number of one `Row` of rows.h a gradient, good inside; an empty list is a column of nulls."""
    laid_out = [as_laid_out(g, p) for g, p in zip(gradients, params, strict=True)] if params else gradients
    nothing = [0] * len(gradients)
    columns = [
        [g.numel() for g in laid_out],
        [KINDS[g.dtype] for g in laid_out],
        *([t.data_ptr() for t in column] or nothing for column in (laid_out, params, first, second, maximum, steps)),
        [KINDS[c.dtype] for c in copies] or nothing,
        [c.data_ptr() for c in copies] or nothing,
    ]
    rows = rows_of(columns)
    yield address_and_count(rows, len(columns))
    del laid_out, rows


def gradient_norm(gradients: list[Tensor], norm_type: float) -> tuple[Tensor, Tensor]:
    """See `graphopt.kernels.tail.ops`."""
    if norm_type not in _POWERS or any(g.dtype not in KINDS for g in gradients):
        return definition.gradient_norm(gradients, norm_type)
    power = _POWERS[norm_type]
    with _rows([], [dense(g) for g in gradients], [], [], [], [], []) as rows:
        total = cpu_library().graphopt_sum_of_powers(*rows, power, torch.get_num_threads())
    if not math.isfinite(total):
        return definition.norm_without_overflow([g for g in gradients if g.numel()], norm_type)
    return torch.tensor(total ** (1 / max(power, 1)), dtype=torch.float32), torch.zeros(())


def adam_(
    params: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    copies: list[Tensor],
    inverse_scale: Tensor | None = None,
    factor: Tensor | None = None,
    found_inf: Tensor | None = None,
    *,
    clip_value: float | None = None,
    **options: Any,
) -> None:
    """See `graphopt.kernels.tail.ops`."""
    if found_inf is not None and bool(found_inf):
        return
    lists = (params, gradients, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, copies)
    assert all(step.dtype == torch.float32 for step in steps)
    taken, left = _split(params, gradients, (exp_avgs, exp_avg_sqs, max_exp_avg_sqs), copies)
    if left:
        arguments: list[Any] = [*_some(lists, left), inverse_scale, factor, found_inf]
        definition_update.adam_(*arguments, clip_value=clip_value, **options)
    scaling = _scaling(inverse_scale, factor, clip_value, options["maximize"])
    numbers = [options[name] for name in ("lr", "beta1", "beta2", "weight_decay", "eps", "decoupled")]
    with _rows(*_some(lists, taken)) as rows:
        cpu_library().graphopt_adam(*rows, ctypes.byref(_AdamOptions(scaling, *numbers)), torch.get_num_threads())


def sgd_(
    params: list[Tensor],
    gradients: list[Tensor],
    momentum_buffers: list[Tensor],
    copies: list[Tensor],
    inverse_scale: Tensor | None = None,
    factor: Tensor | None = None,
    found_inf: Tensor | None = None,
    *,
    clip_value: float | None = None,
    **options: Any,
) -> None:
    """See `graphopt.kernels.tail.ops`."""
    if found_inf is not None and bool(found_inf):
        return
    lists = (params, gradients, momentum_buffers, copies)
    taken, left = _split(params, gradients, (momentum_buffers,), copies)
    if left:
        arguments: list[Any] = [*_some(lists, left), inverse_scale, factor, found_inf]
        definition_update.sgd_(*arguments, clip_value=clip_value, **options)
    scaling = _scaling(inverse_scale, factor, clip_value, options["maximize"])
    numbers = [options[name] for name in ("lr", "momentum", "dampening", "weight_decay", "nesterov", "first")]
    own, grads, buffers, halves = _some(lists, taken)
    with _rows(own, grads, buffers, [], [], [], halves) as rows:
        cpu_library().graphopt_sgd(*rows, ctypes.byref(_SgdOptions(scaling, *numbers)), torch.get_num_threads())


def accumulate_(accumulator: Tensor, gradient: Tensor, beta: float) -> None:
    """See `graphopt.kernels.tail.ops`; where both are fp32 torch's own is as good."""
    fits, _ = _split([accumulator], [gradient], (), [])
    if not fits or gradient.dtype == torch.float32 or not same_order(gradient, accumulator):
        definition.accumulate_(accumulator, gradient, beta)
        return
    with _rows([accumulator], [gradient], [], [], [], [], []) as rows:
        cpu_library().graphopt_accumulate(*rows, ctypes.c_double(beta), torch.get_num_threads())


def _split(
    params: list[Tensor], gradients: list[Tensor], states: Sequence[list[Tensor]], copies: list[Tensor]
) -> tuple[list[int], list[int]]:
    """Which parameters the kernels take, and which are left to torch's ops."""
    taken: list[int] = []
    left: list[int] = []
    columns = [state for state in (params, *states) if state]
    for index, (param, gradient) in enumerate(zip(params, gradients, strict=True)):
        fits = gradient.dtype in KINDS and is_dense(param)
        for column in columns:
            fits = fits and column[index].dtype == torch.float32 and same_order(column[index], param)
        if copies:
            fits = fits and copies[index].dtype in HALF and same_order(copies[index], param)
        (taken if fits else left).append(index)
    return taken, left


def _some(lists: Sequence[list[Tensor]], indices: list[int]) -> list[list[Tensor]]:
    """The same few elements of every list; empty lists stay empty."""
    return [[tensors[i] for i in indices] if tensors else [] for tensors in lists]


def _scaling(inverse_scale: Tensor | None, factor: Tensor | None, clip_value: float | None, maximize: bool) -> _Scaling:
    return _Scaling(
        number(inverse_scale),
        math.inf if clip_value is None else clip_value,
        number(factor),
        -1.0 if maximize else 1.0,
    )
