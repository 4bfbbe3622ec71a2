"""`torch.ops.graphopt.recurrent_layer`: one layer of any kind as eager runs it, whose backward runs it anew.

For what would be thousands of small ops, one for each step, and for packed sequences, whose batch sizes are data.

`recurrent_layer(input, batch_sizes, state, weights, kind, has_biases, bidirectional, autocast)` gives `(output, hy, cy)`.
`kind` names the function of torch's that is run: "lstm", "gru", "rnn_tanh" or "rnn_relu". The input is
[steps, batch, features], or packed [rows, features] where there are `batch_sizes` (int64 [steps], on the CPU); `state`
is [hx], of an LSTM [hx, cx], each [directions, batch, ...]; `weights` are a direction's in torch's order, then the
other's. `autocast` is the dtype of the autocast that the layer stands in, or None. `cy` is empty but for an LSTM.

`recurrent_layer_backward` gives the gradients of input, states and weights, in this order. It holds while it runs what
autograd would keep from the forward to the backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graphopt.kernels.define import define
from graphopt.kernels.recurrent.loops import KINDS, loop_layer, one_weights


def _run(
    input: Tensor,
    batch_sizes: Tensor | None,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    kind: str,
    has_biases: bool,
    bidirectional: bool,
    autocast: torch.dtype | None,
) -> tuple[Tensor, ...]:
    """Eager's own."""
    run = getattr(torch, kind)
    states = list(state) if kind == "lstm" else state[0]
    with torch.autocast(input.device.type, autocast, autocast is not None, cache_enabled=False):
        if batch_sizes is None:
            return run(input, states, weights, has_biases, 1, 0.0, True, bidirectional, False)  # type: ignore[no-any-return]
        return run(input, batch_sizes, states, weights, has_biases, 1, 0.0, True, bidirectional)  # type: ignore[no-any-return]


def _forward(input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    output, hy, *cy = _run(input, *arguments)
    return output, hy, cy[0] if cy else input.new_empty(0)


def _backward(
    grads: Sequence[Tensor | None],
    input: Tensor,
    batch_sizes: Tensor | None,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    *options: Any,
) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in (input, *state, *weights)]
    own_input, own_state, own_weights = leaves[0], leaves[1 : 1 + len(state)], leaves[1 + len(state) :]
    with torch.enable_grad():
        outputs = _run(own_input, batch_sizes, own_state, own_weights, *options)
    pairs = [(output, grad) for output, grad in zip(outputs, grads, strict=False) if grad is not None]
    found = torch.autograd.grad([o for o, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]


def _fake_forward(
    input: Tensor,
    batch_sizes: Tensor | None,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    kind: str,
    has_biases: bool,
    bidirectional: bool,  # noqa: ARG001
    autocast: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    # packed rows of the first step may be fewer, but not of another dtype
    one_step = input[:1] if batch_sizes is None else input[:1].expand(1, state[0].shape[1], -1)
    each = len(weights) // state[0].shape[0]
    own = [one_weights(weights[i : i + each], has_biases) for i in range(0, len(weights), each)]
    with torch.autocast(input.device.type, autocast, autocast is not None, cache_enabled=False):
        output, last = loop_layer(KINDS[kind], one_step, list(zip(*(s.unbind(0) for s in state), strict=True)), own)
    stacked = [torch.stack(one, 0) for one in zip(*last, strict=True)]
    hy, cy, *_ = (*stacked, input.new_empty(0))
    return output.new_empty(input.shape[:-1] + output.shape[-1:]), hy, cy


def _fake_backward(
    grads: Sequence[Tensor | None],  # noqa: ARG001
    input: Tensor,
    batch_sizes: Tensor | None,  # noqa: ARG001
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    *_: Any,
) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (input, *state, *weights)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ARG001
    input, batch_sizes, state, weights, *ctx.options = inputs
    ctx.states = len(state)
    ctx.save_for_backward(input, batch_sizes, *state, *weights)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    input, batch_sizes, *others = ctx.saved_tensors
    states, weights = others[: ctx.states], others[ctx.states :]
    if not any(grad is not None for grad in grads):
        return (None, None, [None] * len(states), [None] * len(weights), None, None, None, None)
    found = recurrent_layer_backward(list(grads), input, batch_sizes, states, weights, *ctx.options)
    return found[0], None, found[1 : 1 + len(states)], found[1 + len(states) :], None, None, None, None


_LAYER = "Tensor input, Tensor? batch_sizes, Tensor[] state, Tensor[] weights, str kind, bool has_biases, "
_LAYER += "bool bidirectional, ScalarType? autocast"
recurrent_layer_backward = define(
    f"recurrent_layer_backward(Tensor?[] grads, {_LAYER}) -> Tensor[]", _backward, _fake_backward
)
recurrent_layer = define(
    f"recurrent_layer({_LAYER}) -> (Tensor output, Tensor hy, Tensor cy)", _forward, _fake_forward
)
torch.library.register_autograd("graphopt::recurrent_layer", _differentiate, setup_context=_keep)
