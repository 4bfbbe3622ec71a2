"""The norm and Adam on CUDA, in Triton: one launch a dtype for all tensors, and nothing that waits for the device.

Needs Triton, which torch brings along where it is built for CUDA. A launch gets a table of addresses, and of the
pieces that tensors are cut into, one a program.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from graphopt.kernels.choice import chosen
from graphopt.kernels.layout import as_laid_out, dense, is_dense, same_order
from graphopt.kernels.pieces import PIECE_ELEMENTS, addresses, are_aligned, pieces
from graphopt.kernels.tail import definition, definition_update
from graphopt.kernels.tail.cuda_adam import adam_kernel
from graphopt.kernels.tail.cuda_norm import sum_of_powers_kernel
from graphopt.kernels.triton_dtypes import TRITON_DTYPES

BLOCK_ELEMENTS = 1024


def gradient_norm(gradients: list[Tensor], norm_type: float) -> tuple[Tensor, Tensor]:
    """See `graphopt.kernels.tail.ops`; in fp64, where no sum of fp32 powers overflows."""
    powers = {1.0: 1, 2.0: 2, 3.0: 3, math.inf: 0}
    filled = [dense(g) for g in gradients if g.numel()]
    if not filled or norm_type not in powers or any(g.dtype not in TRITON_DTYPES for g in filled):
        return definition.gradient_norm(gradients, norm_type)
    power = powers[norm_type]
    sums = []
    for kind, indices in _by_kind(filled):
        some = [filled[i] for i in indices]
        rows, starts, sizes = pieces(tuple(g.numel() for g in some), PIECE_ELEMENTS, some[0].device)
        sums.append(torch.empty(len(rows), dtype=torch.float64, device=some[0].device))
        sum_of_powers_kernel[(len(rows),)](
            *(addresses(some), rows, starts, sizes, sums[-1]),
            power=power,
            kind=kind,
            aligned=are_aligned(some),
            PIECE=PIECE_ELEMENTS,
            BLOCK=BLOCK_ELEMENTS,
        )
    every = torch.cat(sums)
    total = every.sum() if power else every.max()
    norm = total ** (1 / max(power, 1))
    return norm.to(definition.norm_dtype(filled)), (~torch.isfinite(total)).float()


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
    **options: Any,
) -> None:
    """See `graphopt.kernels.tail.ops`; torch's ops do what is not dense fp32, or whose steps are on the CPU.

    And, unless ours are asked for, one parameter alone: a backward that updates each would make tables for each.
    """
    lists = [params, gradients, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, copies]
    if len(params) == 1 and chosen() == "auto":
        alone: list[Any] = [*lists, inverse_scale, factor, found_inf]
        definition_update.adam_(*alone, **options)
        return
    taken = [i for i in range(len(params)) if _fits([column[i] for column in lists if column], lists)]
    left = sorted(set(range(len(params))) - set(taken))
    if left:
        columns = [[column[i] for i in left] if column else [] for column in lists]
        rest: list[Any] = [*columns, inverse_scale, factor, found_inf]
        definition_update.adam_(*rest, **options)
    if taken:
        device = params[taken[0]].device
        one, zero = torch.ones((), device=device), torch.zeros((), device=device)
        scalars = [one if inverse_scale is None else inverse_scale, one if factor is None else factor.float()]
        columns = [[column[i] for i in taken] if column else [] for column in lists]
        _launch_adam(columns, [*scalars, zero if found_inf is None else found_inf], options)


def _launch_adam(columns: list[list[Tensor]], scalars: list[Tensor], options: dict[str, Any]) -> None:
    params, gradients, firsts, seconds, maxima, steps, copies = columns
    laid_out = [as_laid_out(g, p) for g, p in zip(gradients, params, strict=True)]
    torch._foreach_add_(steps, (scalars[-1] == 0).float())
    numbers = _numbers(**options)
    for kind, indices in _by_kind(laid_out):
        some = [[column[i] for i in indices] for column in (params, laid_out, firsts, seconds)]
        counts = torch.stack([steps[i] for i in indices]).double()
        step_sizes = (-options["lr"] / (1 - options["beta1"] ** counts)).float()
        roots = (1 - options["beta2"] ** counts).sqrt().float()
        tables = [addresses(column) for column in some]
        others = [addresses([c[i] for i in indices]) if c else tables[0] for c in (maxima, copies)]
        rows, starts, sizes = pieces(tuple(p.numel() for p in some[0]), PIECE_ELEMENTS, params[0].device)
        adam_kernel[(len(rows),)](
            *(*tables, *others, rows, starts, sizes, step_sizes, roots, *scalars, *numbers),
            amsgrad=bool(maxima),
            copied=bool(copies),
            aligned=all(map(are_aligned, (*some, *([c[i] for i in indices] for c in (maxima, copies) if c)))),
            kind=kind,
            copy_kind=TRITON_DTYPES[copies[0].dtype] if copies else TRITON_DTYPES[torch.float16],
            PIECE=PIECE_ELEMENTS,
            BLOCK=BLOCK_ELEMENTS,
        )


def _numbers(
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    maximize: bool,
    decoupled: bool,
    clip_value: float | None = None,
    amsgrad: bool,  # noqa: ARG001
) -> list[float]:
    """From `clip` to `eps` of the kernel's arguments; a lerp starts from the nearer end, as torch's does."""
    clip = math.inf if clip_value is None else clip_value
    decay, penalty = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
    weight = 1 - beta1 if 1 - beta1 < 0.5 else -beta1
    return [clip, -1.0 if maximize else 1.0, decay, penalty, weight, beta2, 1 - beta2, eps]


def _fits(tensors: list[Tensor], lists: list[list[Tensor]]) -> bool:
    param, gradient, *states = tensors
    copies, step = ([states.pop()] if lists[-1] else []), states.pop()
    return (
        is_dense(param)
        and gradient.dtype in TRITON_DTYPES
        and step.device == param.device
        and all(t.dtype == torch.float32 and same_order(t, param) for t in (param, *states))
        and all(c.dtype == lists[-1][0].dtype and c.dtype in TRITON_DTYPES and same_order(c, param) for c in copies)
    )


def _by_kind(tensors: list[Tensor]) -> Iterator[tuple[Any, list[int]]]:
    """Triton's dtype and the indices of the tensors of each; empty ones have no piece."""
    for dtype, kind in TRITON_DTYPES.items():
        indices = [i for i, t in enumerate(tensors) if t.dtype == dtype and t.numel()]
        if indices:
            yield kind, indices
