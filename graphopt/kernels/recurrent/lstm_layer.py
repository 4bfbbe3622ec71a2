"""`torch.ops.graphopt.lstm_layer`: one direction of one LSTM layer by oneDNN, as eager runs it on a CPU.

`lstm_layer(input, w_ih, w_hh, b_ih, b_hh, hx, cx, reverse, training)` gives `(output, hy, cy, workspace)`: of an input
[steps, batch, features] and states [batch, hidden], all contiguous, the output [steps, batch, hidden], the last states
and, for training, what the backward needs, in bytes. ATen's `mkldnn_rnn_layer` makes that only where grad mode is on,
which it never is where a captured graph runs; and its backward takes memory that is not there for it (torch 2.13 dies).

`lstm_layer_backward` gives fp32 gradients of input, weights, biases and states; of the gradients of the three outputs
those that are None count as zeros, but not all are None. Biases are both there or both None.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from graphopt.kernels.define import define

aten = torch.ops.aten
#: oneDNN's number for an LSTM (ideep's rnn_kind).
_LSTM = 2
_Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _forward(
    input: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    hx: Tensor,
    cx: Tensor,
    reverse: bool,
    training: bool,
) -> _Four:
    weights = (w_ih, w_hh, *_given(b_ih, b_hh, input))
    has_biases = b_ih is not None
    options: tuple[Any, ...] = (reverse, [], _LSTM, hx.shape[-1], 1, has_biases, False, False, training)
    with torch._C._AutoDispatchBelowAutograd(), torch.set_grad_enabled(training):
        output, hy, cy, workspace = aten.mkldnn_rnn_layer.default(input, *weights, hx, cx, *options)
    return output, hy, cy, workspace if training else input.new_empty(0, dtype=torch.uint8)


def _backward(
    grad_output: Tensor | None,
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    input: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    hx: Tensor,
    cx: Tensor,
    output: Tensor,
    hy: Tensor,
    cy: Tensor,
    workspace: Tensor,
    reverse: bool,
) -> tuple[Tensor, ...]:
    forward = (input, w_ih, w_hh, *_given(b_ih, b_hh, input), hx, cx, output, hy, cy)
    has_biases = b_ih is not None
    options: tuple[Any, ...] = (reverse, _LSTM, hx.shape[-1], 1, has_biases, True, False, [], False, workspace)
    return aten.mkldnn_rnn_layer_backward.default(*forward, grad_output, grad_hy, grad_cy, *options)  # type: ignore[no-any-return]


def _given(b_ih: Tensor | None, b_hh: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """The biases; where there are none, tensors that nothing reads."""
    return (like.new_empty(0), like.new_empty(0)) if b_ih is None or b_hh is None else (b_ih, b_hh)


def _fake_forward(
    input: Tensor,
    w_ih: Tensor,  # noqa: ARG001
    w_hh: Tensor,  # noqa: ARG001
    b_ih: Tensor | None,
    b_hh: Tensor | None,  # noqa: ARG001
    hx: Tensor,
    cx: Tensor,
    reverse: bool,  # noqa: ARG001
    training: bool,
) -> _Four:
    steps, batch, features = (int(size) for size in input.shape)
    hidden = int(hx.shape[-1])
    size = workspace_bytes(steps, batch, features, hidden, b_ih is not None, input.dtype) if training else 0
    states = hx.new_empty(batch, hidden), cx.new_empty(batch, hidden)
    return input.new_empty(steps, batch, hidden), *states, input.new_empty(size, dtype=torch.uint8)


def _fake_backward(
    grad_output: Tensor | None,  # noqa: ARG001
    grad_hy: Tensor | None,  # noqa: ARG001
    grad_cy: Tensor | None,  # noqa: ARG001
    input: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,  # noqa: ARG001
    b_hh: Tensor | None,  # noqa: ARG001
    hx: Tensor,
    cx: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:
    gates = w_hh.shape[:1]
    shapes = (input.shape, w_ih.shape, w_hh.shape, gates, gates, hx.shape, cx.shape)
    return tuple(input.new_empty(shape, dtype=torch.float32) for shape in shapes)


@cache
def workspace_bytes(steps: int, batch: int, features: int, hidden: int, has_biases: bool, dtype: torch.dtype) -> int:
    """The bytes that a training forward of such sizes keeps for its backward; only oneDNN knows them, so it is run."""
    with _disable_current_modes():
        gates = torch.zeros(4 * hidden, dtype=dtype) if has_biases else None
        weights = torch.zeros(4 * hidden, features, dtype=dtype), torch.zeros(4 * hidden, hidden, dtype=dtype)
        state = torch.zeros(batch, hidden, dtype=dtype)
        input = torch.zeros(steps, batch, features, dtype=dtype)
        return _forward(input, *weights, gates, gates, state, state, False, True)[3].numel()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: _Four) -> None:
    *tensors, ctx.reverse, _training = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    given = [grad.contiguous() if grad is not None else None for grad in grads[:3]]
    if not any(grad is not None for grad in given):
        return (None,) * 9
    found = lstm_layer_backward(*given, *ctx.saved_tensors, ctx.reverse)
    wanted = ctx.needs_input_grad[:7]
    return *(grad if want else None for grad, want in zip(found, wanted, strict=True)), None, None


_LAYER = "Tensor input, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor hx, Tensor cx"
lstm_layer_backward = define(
    f"lstm_layer_backward(Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, {_LAYER}, Tensor output, Tensor hy, "
    "Tensor cy, Tensor workspace, bool reverse) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
lstm_layer = define(
    f"lstm_layer({_LAYER}, bool reverse, bool training) -> (Tensor output, Tensor hy, Tensor cy, Tensor workspace)",
    _forward,
    _fake_forward,
)
torch.library.register_autograd("graphopt::lstm_layer", _differentiate, setup_context=_keep)
