"""Adam, AdamW and SGD with torch's fused functional ops, on the optimizer's own state; `ops` says what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphopt.device.dtypes import HALF
from graphopt.kernels.layout import as_laid_out, dense, write_back


@dataclass(frozen=True)
class GradientScaling:
    """What is done to a gradient on its way into the update: clamp(g × inverse_scale, ±clip_value) × factor.

    The three tensors are scalars on the parameters' device, fp32, or `factor` fp64; where `found_inf` is not zero
    nothing is updated.
    """

    inverse_scale: Tensor | None
    factor: Tensor | None
    found_inf: Tensor | None
    clip_value: float | None

    def skips(self) -> bool:
        """Whether it is known here, without waiting for a device, that nothing is to be updated."""
        return self.found_inf is not None and self.found_inf.device.type == "cpu" and bool(self.found_inf)

    def multiplier(self) -> Tensor | None:
        """What is left to multiply gradients by after `clamped`, a scalar; None where nothing is."""
        folded = [self.factor] if self.clip_value is not None else [self.inverse_scale, self.factor]
        factors = [f for f in folded if f is not None]
        if not factors:
            return None
        return factors[0] * factors[1] if len(factors) == 2 else factors[0]

    def clamped(self, gradients: list[Tensor]) -> None:
        """Unscale and clamp in place, where the clamp stands between two factors that could else be folded."""
        if self.clip_value is not None:
            for gradient in gradients:
                if self.inverse_scale is not None:
                    gradient.mul_(self.inverse_scale)
                gradient.clamp_(-self.clip_value, self.clip_value)


Scalar = Tensor | None
States = list[list[Tensor]]
#: (indices into the lists, params, gradients, states, divisor of the gradients)
FusedUpdate = Callable[[list[int], list[Tensor], list[Tensor], States, Scalar], None]


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
    decoupled: bool,
    clip_value: float | None = None,
    **options: Any,
) -> None:
    """See `graphopt.kernels.tail.ops`; `options` are the fused op's own."""
    fused = torch._fused_adamw_ if decoupled else torch._fused_adam_
    skip = _exactly_one(found_inf)

    def update(indices: list[int], some: list[Tensor], grads: list[Tensor], states: States, divisor: Scalar) -> None:
        counts = [steps[i] for i in indices]
        on_device = _moved(counts, some[0].device)
        torch._foreach_add_(on_device, 1)
        maxima = states[2] if max_exp_avg_sqs else []
        fused(some, grads, states[0], states[1], maxima, on_device, grad_scale=divisor, found_inf=skip, **options)
        if skip is not None:
            torch._foreach_sub_(on_device, [skip] * len(counts))
        write_back(on_device, counts)

    states = [state for state in (exp_avgs, exp_avg_sqs, max_exp_avg_sqs) if state]
    _update(update, params, gradients, states, copies, GradientScaling(inverse_scale, factor, found_inf, clip_value))


def sgd_(
    params: list[Tensor],
    gradients: list[Tensor],
    momentum_buffers: list[Tensor],
    copies: list[Tensor],
    inverse_scale: Tensor | None = None,
    factor: Tensor | None = None,
    found_inf: Tensor | None = None,
    *,
    first: bool,
    clip_value: float | None = None,
    **options: Any,
) -> None:
    """See `graphopt.kernels.tail.ops`; `options` are the fused op's own."""
    skip = _exactly_one(found_inf)

    def update(_: list[int], some: list[Tensor], grads: list[Tensor], states: States, divisor: Scalar) -> None:
        buffers = states[0] if states else []
        torch._fused_sgd_(some, grads, buffers, is_first_step=first, grad_scale=divisor, found_inf=skip, **options)

    states = [momentum_buffers] if momentum_buffers else []
    scaling = GradientScaling(inverse_scale, factor, found_inf, clip_value)
    # torch 2.13's fused SGD on CPU leaves half parameters as they are, but for the last few elements
    half_fails = bool(params) and params[0].device.type != "cuda"
    _update(update, params, gradients, states, copies, scaling, half_fails=half_fails)


def _update(
    fused: FusedUpdate,
    params: list[Tensor],
    gradients: list[Tensor],
    states: States,
    copies: list[Tensor],
    scaling: GradientScaling,
    *,
    half_fails: bool = False,
) -> None:
    """Run `fused` on lists that it takes: of one dtype, dense, and in one order; in fp32 where `half_fails`."""
    if scaling.skips():
        return
    multiplier, on_cuda = scaling.multiplier(), bool(params) and params[0].is_cuda
    divisor = None if multiplier is None or on_cuda else torch.reciprocal(multiplier.float())

    def run(indices: list[int]) -> None:
        own = [params[i] for i in indices]
        computed = [_computed(p, half_fails) for p in own]
        grads = [as_laid_out(gradients[i].to(p.dtype), p) for i, p in zip(indices, computed, strict=True)]
        scaling.clamped(grads)
        is_wide = computed[0].dtype == torch.float64
        if multiplier is not None and (on_cuda or is_wide):
            # On CUDA the fused ops divide each element in fp64, which takes longer than one more read and write, and
            # SGD's rounds otherwise than GradScaler and it in turn. They take no divisor but in fp32.
            torch._foreach_mul_(grads, multiplier if is_wide else multiplier.float())
        own_states = [[state[i] for i in indices] for state in states]
        computed_states = [
            [as_laid_out(s.to(p.dtype), p) for s, p in zip(state, computed, strict=True)] for state in own_states
        ]
        fused(indices, computed, grads, computed_states, None if is_wide else divisor)
        write_back(computed, own)
        for after, before in zip(computed_states, own_states, strict=True):
            write_back(after, before)
        if copies:
            _refresh([copies[i] for i in indices], own, scaling.found_inf)

    for indices in _batches(params, gradients, half_fails):
        run(indices)  # whose copies are gone before the next ones are made


def _computed(param: Tensor, half_fails: bool) -> Tensor:
    """`param` itself where the fused op takes it as it is, else a dense copy."""
    return dense(param.float() if half_fails and param.dtype in HALF else param)


def _batches(params: list[Tensor], gradients: list[Tensor], half_fails: bool) -> Iterator[list[int]]:
    """Indices that one fused call may take: all of a dtype, but one at a time where something is converted."""
    together: dict[torch.dtype, list[int]] = {}
    for index, (param, gradient) in enumerate(zip(params, gradients, strict=True)):
        if param.dtype == gradient.dtype and not (half_fails and param.dtype in HALF):
            together.setdefault(param.dtype, []).append(index)
        else:
            yield [index]
    yield from together.values()


def _exactly_one(found_inf: Tensor | None) -> Tensor | None:
    """The fused ops skip only where the flag is 1.0, so that 2.0, a sum over ranks, would not."""
    return None if found_inf is None else (found_inf != 0).to(torch.float32)


def _moved(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Scalars on `device`, themselves where they are there already."""
    if tensors[0].device == device:
        return tensors
    return list(torch.stack(tensors).to(device).unbind())


def _refresh(copies: list[Tensor], masters: list[Tensor], found_inf: Tensor | None) -> None:
    """Round the masters into their copies, but leave these where the step was skipped."""
    for copy, master in zip(copies, masters, strict=True):
        if found_inf is None or found_inf.device.type == "cpu":  # where a skipped step does not come this far
            copy.copy_(master)
        else:
            copy.copy_(torch.where(found_inf != 0, copy, master))
