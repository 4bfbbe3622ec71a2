"""`torch.ops.graphopt.recurrence`: one direction of one recurrent layer, behind its input's product.

Eager runs it on a CPU as a loop of small ops, whose bits these are, in the backward too; as ops of a graph they would
be thousands.

`recurrence(from_input, h, c, w_hh, b_hh, w_hr, kind, reverse)` gives `(output, hy, cy, reserve)`. `kind` names torch's
function: "lstm", "gru", "rnn_tanh" or "rnn_relu". `from_input` is what the input gives for each gate,
[steps, batch, gates × hidden]. The states h [batch, size] and, for an LSTM alone, c [batch, hidden] are those before
the first step, hy and cy those behind the last one; `cy` is empty where there is none. All are of one dtype. `reserve`
is flat: what the backward needs beside the rest.

`recurrence_backward` gives the gradients of from_input, h, c, w_hh, b_hh and w_hr, empty for what is None. Of those of
the three outputs None counts as zeros, but not all are None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphopt.kernels.define import define
from graphopt.kernels.recurrent.cells import CELLS, Before, Cell, LeftByStep, StateWeights, WeightGradients


class _Layer(NamedTuple):
    """What forward and backward are given alike."""

    h: Tensor
    c: Tensor | None
    weights: StateWeights
    cell: Cell
    reverse: bool

    def in_order(self, steps: int) -> Sequence[int]:
        """The steps in the order in which they are run."""
        return range(steps)[::-1] if self.reverse else range(steps)

    def reserve_elements(self, steps: int) -> int:
        """How many numbers are kept."""
        return steps * self.h.shape[0] * sum(self.cell.widths) * self._hidden_size

    def buffers(self, reserve: Tensor) -> list[Tensor]:
        """The reserve as one [steps, batch, width] for each thing that is kept."""
        shapes = [(self.h.shape[0], width * self._hidden_size) for width in self.cell.widths]
        steps = reserve.numel() // max(sum(batch * width for batch, width in shapes), 1)
        parts = reserve.split([steps * batch * width for batch, width in shapes]) if shapes else ()
        return [part.view(steps, *shape) for part, shape in zip(parts, shapes, strict=True)]

    @property
    def _hidden_size(self) -> int:
        return self.weights.w_hh.shape[0] // self.cell.gates


def _layer_of(
    h: Tensor,
    c: Tensor | None,
    w_hh: Tensor,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    kind: str,
    reverse: bool,
) -> _Layer:
    return _Layer(h, c, StateWeights(w_hh, b_hh, w_hr), CELLS[kind], reverse)


def _forward(from_input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layer, steps = _layer_of(*arguments), from_input.shape[0]
    output = from_input.new_empty(*from_input.shape[:2], layer.h.shape[1])
    reserve = from_input.new_empty(layer.reserve_elements(steps))
    buffers = layer.buffers(reserve)
    h, c = layer.h, layer.c
    for i in layer.in_order(steps):
        kept = LeftByStep(output[i], [buffer[i] for buffer in buffers])
        layer.cell.forward(from_input[i], Before(h, c), layer.weights, kept)
        h, c = kept.h, kept.reserve[layer.cell.c_at] if layer.cell.c_at is not None else None
    return output, h.clone(), from_input.new_empty(0) if c is None else c.clone(), reserve


def _backward(
    grad_output: Tensor | None,
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    output: Tensor,
    reserve: Tensor,
    *arguments: Any,
) -> tuple[Tensor, ...]:
    layer, sums = _layer_of(*arguments), WeightGradients()
    buffers = layer.buffers(reserve)
    of_input = output.new_empty(*output.shape[:2], layer.weights.w_hh.shape[0])
    terms: tuple[Tensor, ...] = () if grad_hy is None else (grad_hy,)
    of_c = None if layer.c is None else grad_cy
    earlier = [None, *layer.in_order(output.shape[0])]
    while (i := earlier.pop()) is not None:
        before = Before(layer.h, layer.c) if earlier[-1] is None else _states(layer, output, buffers, earlier[-1])
        kept = LeftByStep(output[i], [buffer[i] for buffer in buffers])
        grad = _sum(None if grad_output is None else grad_output[i], terms, kept.h)
        terms, of_c = layer.cell.backward(grad, of_c, before, layer.weights, kept, of_input[i], sums)
    found = (of_input, _sum(None, terms, layer.h), of_c, sums.w_hh, sums.b_hh, sums.w_hr)
    return tuple(output.new_empty(0) if grad is None else grad for grad in found)


def _states(layer: _Layer, output: Tensor, buffers: list[Tensor], step: int) -> Before:
    """Those behind a step."""
    return Before(output[step], None if layer.cell.c_at is None else buffers[layer.cell.c_at][step])


def _sum(first: Tensor | None, terms: tuple[Tensor, ...], like: Tensor) -> Tensor:
    """Of all, in their order; zeros where there are none."""
    total = first
    for term in terms:
        total = term if total is None else total + term
    return torch.zeros_like(like) if total is None else total


def _fake_forward(from_input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layer, new = _layer_of(*arguments), from_input.new_empty
    steps, batch, _ = from_input.shape
    cy = new(0) if layer.c is None else new(layer.c.shape)
    return new(steps, batch, layer.h.shape[1]), new(layer.h.shape), cy, new(layer.reserve_elements(steps))


def _fake_backward(
    grad_output: Tensor | None,  # noqa: ARG001
    grad_hy: Tensor | None,  # noqa: ARG001
    grad_cy: Tensor | None,  # noqa: ARG001
    output: Tensor,
    reserve: Tensor,  # noqa: ARG001
    *arguments: Any,
) -> tuple[Tensor, ...]:
    layer = _layer_of(*arguments)
    of_input = output.new_empty(*output.shape[:2], layer.weights.w_hh.shape[0])
    others = (layer.h, layer.c, *layer.weights)
    return of_input, *(output.new_empty(0 if tensor is None else tensor.shape) for tensor in others)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _from_input, *tensors, ctx.kind, ctx.reverse = inputs
    ctx.save_for_backward(output[0], output[3], *tensors)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if not any(grad is not None for grad in grads[:3]):
        return (None,) * 8
    found = recurrence_backward(*grads[:3], *ctx.saved_tensors, ctx.kind, ctx.reverse)
    wanted = ctx.needs_input_grad[:6]
    return *(grad if want else None for grad, want in zip(found, wanted, strict=True)), None, None


_LAYER = "Tensor h, Tensor? c, Tensor w_hh, Tensor? b_hh, Tensor? w_hr, str kind, bool reverse"
recurrence_backward = define(
    "recurrence_backward(Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, Tensor output, Tensor reserve, "
    f"{_LAYER}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
recurrence = define(
    f"recurrence(Tensor from_input, {_LAYER}) -> (Tensor output, Tensor hy, Tensor cy, Tensor reserve)",
    _forward,
    _fake_forward,
)
torch.library.register_autograd("graphopt::recurrence", _differentiate, setup_context=_keep)
