"""The custom ops of the gradient tail, `torch.ops.graphopt.*`: what they mean, and what stands in for them in a graph.

`gradient_norm(gradients, norm_type)` gives `(norm, found_inf)`, two scalars on the gradients' device: the
`norm_type`-norm (any p > 0, or inf) of all elements as they are, added up in fp32 or wider, and 1.0 where any
element is infinite or NaN, else 0.0. A sum of powers beyond fp32 is not an infinite element. The norm is fp64 where a
gradient is, else fp32 as the flag. Gradients may be of any shapes, floating dtypes and layouts, on one device.

`adam_` and `sgd_` update parameters in place by clamp(gradient × inverse_scale, ±clip_value) × factor, where what is
None is left out. Lists hold one tensor a parameter, of its shape, or are empty where that is said. Parameters and state
are of any floating dtypes and layouts, on one device. The scalars `inverse_scale`, `factor` and `found_inf` are fp32
(`factor` may be fp64), on the parameters' device. Where `found_inf` is not zero nothing changes: parameters, state,
step counts and copies keep their bits. Gradients may be half while parameters are fp32, and may be overwritten.
`copies` are empty, or the half parameters that take the updated ones, their fp32 masters. Step counts are fp32 scalars
that advance here. `adam_` is AdamW where `decoupled`; `max_exp_avg_sqs` are empty without `amsgrad`. `sgd_` reads no
momentum buffer while `first`, which the caller passes until a step was taken; buffers are empty without `momentum`.

`scale_update_` moves a dynamic loss scale, a fp32 scalar: an overflow, where the fp32 scalar `found_inf` is not zero,
takes one from the hysteresis and, when none is left, multiplies the scale by `backoff`, to no less than `lowest`;
`interval` good steps on end multiply it by `growth`, to no more than `highest` and only where that is finite, and fill
the hysteresis again. Trackers are int32 scalars.

`accumulate_` is accumulator = beta × accumulator + gradient, both of one shape, and `accumulate_mm_` is
accumulator = beta × accumulator + a @ b, [n, m] of [n, k] and [k, m], with no temporary where all three are of one
dtype; with beta 0 what the accumulator held is not read, and the bits are those of `mm`. Else the BLAS rounds where it
likes. MKL gives a matrix (not a single row) the bits of `mm` and `add_` on Intel where it sums 2 to 384 terms, with 2
ulps of the largest element between beyond; on AMD only in fp32, to 192 terms and from 12 columns on, with 2 to 6 ulps
between beyond (1,024 to 8,192 terms), while narrow products are summed term by term (42 ulps). Steps with stock kernels
do without it. Operands may be half where the accumulator is fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphopt.kernels.define import Implementations, define, dispatching, no_result
from graphopt.kernels.tail import cpu, definition, definition_update

#: What runs each op.
TABLE = {
    "gradient_norm": Implementations(
        definition.gradient_norm, cpu.gradient_norm, "graphopt.kernels.tail.cuda:gradient_norm"
    ),
    "adam_": Implementations(definition_update.adam_, cpu.adam_, "graphopt.kernels.tail.cuda:adam_"),
    "sgd_": Implementations(definition_update.sgd_, cpu.sgd_),
    "scale_update_": Implementations(definition.scale_update_),
    "accumulate_": Implementations(definition.accumulate_, cpu.accumulate_),
    "accumulate_mm_": Implementations(definition.accumulate_mm_),
}

_GRADIENT = "Tensor? inverse_scale=None, Tensor? factor=None, Tensor? found_inf=None"
ADAM_SCHEMA = (
    "adam_(Tensor(a!)[] params, Tensor(b!)[] gradients, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
    f"Tensor(e!)[] max_exp_avg_sqs, Tensor(f!)[] steps, Tensor(g!)[] copies, {_GRADIENT}, *, "
    "float lr, float beta1, float beta2, float weight_decay, float eps, bool amsgrad, bool maximize, "
    "bool decoupled, float? clip_value=None) -> ()"
)
SGD_SCHEMA = (
    "sgd_(Tensor(a!)[] params, Tensor(b!)[] gradients, Tensor(c!)[] momentum_buffers, Tensor(d!)[] copies, "
    f"{_GRADIENT}, *, float lr, float momentum, float dampening, float weight_decay, bool nesterov, "
    "bool maximize, bool first, float? clip_value=None) -> ()"
)


def _noticed(update: Callable[..., None]) -> Callable[..., None]:
    """`update`, after which autograd knows that the parameters changed; torch's fused ops do not tell it."""

    def told(params: list[Tensor], *arguments: Any, **options: Any) -> None:
        update(params, *arguments, **options)
        torch.autograd.graph.increment_version(params)

    return told


def _two_scalars(gradients: list[Tensor], norm_type: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    device = gradients[0].device if gradients else "cpu"
    norm = torch.empty((), dtype=definition.norm_dtype(gradients), device=device)
    return norm, torch.empty((), device=device)


gradient_norm = define(
    "gradient_norm(Tensor[] gradients, float norm_type) -> (Tensor norm, Tensor found_inf)",
    dispatching(TABLE["gradient_norm"]),
    _two_scalars,
)
adam_ = define(
    ADAM_SCHEMA,
    _noticed(dispatching(TABLE["adam_"])),
    no_result,
)
sgd_ = define(
    SGD_SCHEMA,
    _noticed(dispatching(TABLE["sgd_"])),
    no_result,
)
scale_update_ = define(
    "scale_update_(Tensor(a!) scale, Tensor(b!) growth_tracker, Tensor(c!) hysteresis_tracker, Tensor found_inf, *, "
    "float growth, float backoff, int interval, int hysteresis, float lowest, float highest) -> ()",
    dispatching(TABLE["scale_update_"]),
    no_result,
)
accumulate_ = define(
    "accumulate_(Tensor(a!) accumulator, Tensor gradient, float beta) -> ()",
    dispatching(TABLE["accumulate_"]),
    no_result,
)
accumulate_mm_ = define(
    "accumulate_mm_(Tensor(a!) accumulator, Tensor a, Tensor b, float beta) -> ()",
    dispatching(TABLE["accumulate_mm_"]),
    no_result,
)
