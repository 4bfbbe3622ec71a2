"""The updates of parameters whose state is elsewhere, as nodes of a step's graph.

`stream_adam_` and `stream_sgd_` take what `adam_` and `sgd_` take (`graphopt.kernels.tail.ops`) and give the same bits,
but all their tensors of state, save the counts of steps, are a StateStore's. `block_elements` is the most that is on
the device at a time, three times over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphopt.kernels.define import define, no_result
from graphopt.kernels.streaming.update import UpdateRows, update_by_blocks
from graphopt.kernels.tail.ops import ADAM_SCHEMA, SGD_SCHEMA, adam_, sgd_


def _skips(found_inf: Tensor | None) -> bool:
    """Whether it is known without waiting for a device that nothing changes; elsewhere kernels see to it."""
    return found_inf is not None and found_inf.device.type == "cpu" and bool(found_inf != 0)


def _stream_adam_(
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
    block_elements: int,
    **options: Any,
) -> None:
    if _skips(found_inf):
        return
    states = [state for state in (exp_avgs, exp_avg_sqs, max_exp_avg_sqs) if state]

    def update(rows: UpdateRows) -> None:
        maxima = rows.states[2] if max_exp_avg_sqs else []
        held = rows.params, rows.gradients, rows.states[0], rows.states[1], maxima, rows.steps, rows.copies
        adam_(*held, inverse_scale, factor, found_inf, **options)

    update_by_blocks(UpdateRows(params, gradients, states, steps, copies), update, block_elements, reads=True)
    torch.autograd.graph.increment_version(params)


def _stream_sgd_(
    params: list[Tensor],
    gradients: list[Tensor],
    momentum_buffers: list[Tensor],
    copies: list[Tensor],
    inverse_scale: Tensor | None = None,
    factor: Tensor | None = None,
    found_inf: Tensor | None = None,
    *,
    block_elements: int,
    **options: Any,
) -> None:
    if _skips(found_inf):
        return

    def update(rows: UpdateRows) -> None:
        held = rows.params, rows.gradients, rows.states[0], rows.copies
        sgd_(*held, inverse_scale, factor, found_inf, **options)

    # what is there before the first step is not read; where that is skipped on a device, zeros must stay zeros
    reads = not options["first"] or found_inf is not None
    update_by_blocks(UpdateRows(params, gradients, [momentum_buffers], [], copies), update, block_elements, reads=reads)
    torch.autograd.graph.increment_version(params)


_BLOCKS = ", int block_elements) -> ()"
stream_adam_ = define(
    f"stream_{ADAM_SCHEMA.removesuffix(') -> ()')}{_BLOCKS}",
    _stream_adam_,
    no_result,
)
stream_sgd_ = define(
    f"stream_{SGD_SCHEMA.removesuffix(') -> ()')}{_BLOCKS}",
    _stream_sgd_,
    no_result,
)
#: The arguments of each that are state, and elsewhere.
STREAMED: dict[Any, tuple[str, ...]] = {
    stream_adam_: ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"),
    stream_sgd_: ("momentum_buffers",),
}
