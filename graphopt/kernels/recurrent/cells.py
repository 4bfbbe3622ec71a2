"""One step of a recurrent layer, forward and backward, with the kernels that eager and its autograd run on a CPU.

On tensors of the same layout they give the same bits (aten/src/ATen/native/RNN.cpp, and derivatives.yaml).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten


class StateWeights(NamedTuple):
    """What a state is multiplied with: [gates × hidden, size of h], their bias, and an LSTM's projection."""

    w_hh: Tensor
    b_hh: Tensor | None
    w_hr: Tensor | None


class Before(NamedTuple):
    """What a step starts from: h [batch, size], and an LSTM's c [batch, hidden]."""

    h: Tensor
    c: Tensor | None


class LeftByStep(NamedTuple):
    """What a step leaves: its h, which is its output, and what it keeps, each [batch, width] with its cell's width."""

    h: Tensor
    reserve: Sequence[Tensor]


#: Terms of the gradient of h before a step, in the order to add them, and the gradient of c before it.
Back = tuple[tuple[Tensor, ...], Tensor | None]


@dataclass
class WeightGradients:
    """Added up step by step, the last one first, as autograd adds them."""

    w_hh: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None

    def add(self, name: str, term: Tensor) -> None:
        """Add a new tensor to one of them."""
        known = getattr(self, name)
        if known is None:
            setattr(self, name, term)
        else:
            known.add_(term)


class Cell(NamedTuple):
    """A kind of layer. `gates` and `widths` are of its hidden size; the reserve's c is at `c_at`, where it has one.

    `forward` takes what the input gives, [batch, gates × hidden], and writes what a step leaves. `backward` takes the
    gradients of h and c behind a step, and writes that of what the input gives.
    """

    forward: Callable[[Tensor, Before, StateWeights, LeftByStep], None]
    backward: Callable[[Tensor, Tensor | None, Before, StateWeights, LeftByStep, Tensor, WeightGradients], Back]
    gates: int
    widths: tuple[int, ...]
    c_at: int | None = None


def _product(h: Tensor, weights: StateWeights, out: Tensor) -> Tensor:
    if weights.b_hh is None:
        return torch.mm(h, weights.w_hh.t(), out=out)
    return torch.addmm(weights.b_hh, h, weights.w_hh.t(), out=out)


def _through_product(gates: Tensor, h: Tensor, weights: StateWeights, sums: WeightGradients) -> Tensor:
    """The gradient of h; those of the weights go to the sums."""
    sums.add("w_hh", gates.t().mm(h))
    if weights.b_hh is not None:
        sums.add("b_hh", gates.sum(0))
    return _left_gradient(gates, h, weights.w_hh)


def _left_gradient(grad: Tensor, left: Tensor, weight: Tensor) -> Tensor:
    """Of `left @ weight.t()`, as autograd takes it."""
    if left.stride() == (1, left.shape[0]):
        return weight.t().mm(grad.t()).t()
    return grad.mm(weight)


def _lstm(from_input: Tensor, before: Before, weights: StateWeights, kept: LeftByStep) -> None:
    gates, c, tanh_c = kept.reserve
    assert before.c is not None
    _product(before.h, weights, gates).add_(from_input)
    gate_i, gate_f, gate_g, gate_o = gates.unsafe_chunk(4, 1)
    for gate in (gate_i, gate_f, gate_o):
        gate.sigmoid_()
    gate_g.tanh_()
    torch.mul(gate_f, before.c, out=c).add_(gate_i * gate_g)
    torch.tanh(c, out=tanh_c)
    if weights.w_hr is None:
        torch.mul(gate_o, tanh_c, out=kept.h)
    else:
        torch.mm(gate_o * tanh_c, weights.w_hr.t(), out=kept.h)


def _lstm_back(
    grad: Tensor,
    grad_c: Tensor | None,
    before: Before,
    weights: StateWeights,
    kept: LeftByStep,
    out: Tensor,
    sums: WeightGradients,
) -> Back:
    gates, _, tanh_c = kept.reserve
    gate_i, gate_f, gate_g, gate_o = gates.unsafe_chunk(4, 1)
    if weights.w_hr is not None:
        unprojected = gate_o * tanh_c
        sums.add("w_hr", grad.t().mm(unprojected))
        grad = _left_gradient(grad, unprojected, weights.w_hr)
    from_h = aten.tanh_backward(grad * gate_o, tanh_c)
    total = from_h if grad_c is None else grad_c + from_h
    parts = (
        aten.sigmoid_backward(total * gate_g, gate_i),
        aten.sigmoid_backward(total * before.c, gate_f),
        aten.tanh_backward(total * gate_i, gate_g),
        aten.sigmoid_backward(grad * tanh_c, gate_o),
    )
    torch.cat(parts, 1, out=out)
    return (_through_product(out, before.h, weights, sums),), total * gate_f


def _gru(from_input: Tensor, before: Before, weights: StateWeights, kept: LeftByStep) -> None:
    gates, new = kept.reserve
    input_r, input_z, input_n = from_input.unsafe_chunk(3, 1)
    reset, update, state_n = _product(before.h, weights, gates).unsafe_chunk(3, 1)
    reset.add_(input_r).sigmoid_()
    update.add_(input_z).sigmoid_()
    torch.add(input_n, state_n * reset, out=new).tanh_()
    torch.sub(before.h, new, out=kept.h).mul_(update).add_(new)


def _gru_back(
    grad: Tensor,
    _grad_c: Tensor | None,
    before: Before,
    weights: StateWeights,
    kept: LeftByStep,
    out: Tensor,
    sums: WeightGradients,
) -> Back:
    gates, new = kept.reserve
    reset, update, state_n = gates.unsafe_chunk(3, 1)
    through = grad * update
    from_new = aten.tanh_backward(grad - through, new)
    grad_r = aten.sigmoid_backward(from_new * state_n, reset)
    grad_z = aten.sigmoid_backward(grad * (before.h - new), update)
    torch.cat((grad_r, grad_z, from_new), 1, out=out)
    of_state = torch.cat((grad_r, grad_z, from_new * reset), 1)
    return (through, _through_product(of_state, before.h, weights, sums)), None


def _simple(activation: Callable[..., Tensor]) -> Callable[[Tensor, Before, StateWeights, LeftByStep], None]:
    def forward(from_input: Tensor, before: Before, weights: StateWeights, kept: LeftByStep) -> None:
        activation(_product(before.h, weights, kept.h).add_(from_input), out=kept.h)

    return forward


def _simple_back(derivative: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Back]:
    def backward(
        grad: Tensor,
        _grad_c: Tensor | None,
        before: Before,
        weights: StateWeights,
        kept: LeftByStep,
        out: Tensor,
        sums: WeightGradients,
    ) -> Back:
        out.copy_(derivative(grad, kept.h))
        return (_through_product(out, before.h, weights, sums),), None

    return backward


#: By the name of torch's function.
CELLS = {
    "lstm": Cell(_lstm, _lstm_back, gates=4, widths=(4, 1, 1), c_at=1),
    "gru": Cell(_gru, _gru_back, gates=3, widths=(3, 1)),
    "rnn_tanh": Cell(_simple(torch.tanh), _simple_back(aten.tanh_backward), gates=1, widths=()),
    "rnn_relu": Cell(
        _simple(lambda t, out: torch.clamp_min(t, 0, out=out)),
        _simple_back(lambda grad, h: aten.threshold_backward(grad, h, 0)),
        gates=1,
        widths=(),
    ),
}
