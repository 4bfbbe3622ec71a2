"""`torch.ops.graphopt.recurrence`: one direction of one recurrent layer, behind its input's product.

Eager runs it on a CPU as a loop of small ops, whose bits these are, in the backward too; as ops of a graph they would
be thousands.

`recurrence(from_input, batch_sizes, h, c, w_hh, b_hh, w_hr, kind, reverse)` gives `(output, hy, cy, reserve)`. `kind`
names torch's function: "lstm", "gru", "rnn_tanh" or "rnn_relu". `from_input` is what the input gives for each gate,
[steps, batch, gates × hidden]; or packed, [rows, gates × hidden], with the `batch_sizes` of the steps (int64 on the
CPU, falling). The states h [batch, size] and, for an LSTM alone, c [batch, hidden] are those before the first step, hy
and cy those behind the last one. All floats have one dtype. `reserve` is flat: what the backward needs beside the rest.

`recurrence_backward` gives the gradients of from_input, h, c, w_hh, b_hh and w_hr, empty for what is None. Of those of
the three outputs None counts as zeros, but not all are None.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphopt.kernels.define import define
from graphopt.kernels.recurrent.cells import CELLS, Before, Cell, Kept, WeightGradients, Weights


class _Layer(NamedTuple):
    """What forward and backward are given alike."""

    batch_sizes: Tensor | None
    h: Tensor
    c: Tensor | None
    weights: Weights
    cell: Cell
    reverse: bool

    @property
    def hidden_size(self) -> int:
        return self.weights.w_hh.shape[0] // self.cell.gates

    def spans(self, steps: torch.Size) -> list[tuple[int, int]]:
        """The rows of each step, in the order in which they are run, of what is [steps, batch, ...] or [rows, ...]."""
        sizes = [steps[1]] * steps[0] if self.batch_sizes is None else self.batch_sizes.tolist()
        spans, end = [], 0
        for size in sizes:
            spans.append((end, end + size))
            end += size
        return spans[::-1] if self.reverse else spans

    def reserve_elements(self, of_each_row: Tensor) -> int:
        """Of something of the size of h, or of gates, in each row."""
        return of_each_row.numel() // of_each_row.shape[-1] * sum(self.cell.widths) * self.hidden_size

    def buffers(self, reserve: Tensor, rows: int) -> list[Tensor]:
        """The reserve as one matrix for each thing that is kept."""
        widths = [width * self.hidden_size for width in self.cell.widths]
        parts = reserve.split([rows * width for width in widths]) if widths else ()
        return [part.view(rows, width) for part, width in zip(parts, widths, strict=True)]


def _layer_of(
    batch_sizes: Tensor | None,
    h: Tensor,
    c: Tensor | None,
    w_hh: Tensor,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    kind: str,
    reverse: bool,
) -> _Layer:
    return _Layer(batch_sizes, h, c, Weights(w_hh, b_hh, w_hr), CELLS[kind], reverse)


def _fitted(state: Tensor, rows: int, first: Tensor) -> Tensor:
    """A state for a step of so many rows: sequences that have ended leave it, those that begin bring their first."""
    if rows <= state.shape[0]:
        return state[:rows]
    return torch.cat((state, first[state.shape[0] : rows]), 0)


def _forward(from_input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layer, rows = _layer_of(*arguments), from_input.reshape(-1, from_input.shape[-1])
    spans = layer.spans(from_input.shape)
    output = rows.new_empty(rows.shape[0], layer.h.shape[-1])
    reserve = rows.new_empty(layer.reserve_elements(rows))
    buffers = layer.buffers(reserve, rows.shape[0])
    h, c = layer.h, layer.c
    ended_h, ended_c = [], []
    for number, (start, end) in enumerate(spans):
        count = end - start
        if number and count < h.shape[0]:
            ended_h.append(h[count:])
            ended_c.append(c[count:] if c is not None else None)
        h = _fitted(h, count, layer.h)
        c = _fitted(c, count, layer.c) if c is not None else None
        kept = Kept(output[start:end], [buffer[start:end] for buffer in buffers])
        layer.cell.forward(Before(rows[start:end], h, c), layer.weights, kept)
        h = kept.h
        c = kept.reserve[layer.cell.c_at] if layer.cell.c_at is not None else None
    hy = torch.cat([h, *reversed(ended_h)], 0)
    cy = torch.cat([c, *reversed(ended_c)], 0) if c is not None else rows.new_empty(0)
    return output.view(*from_input.shape[:-1], -1), hy, cy, reserve


def _backward(
    grad_output: Tensor | None,
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    output: Tensor,
    reserve: Tensor,
    *arguments: Any,
) -> tuple[Tensor, ...]:
    layer, outputs = _layer_of(*arguments), output.reshape(-1, output.shape[-1])
    spans, buffers = layer.spans(output.shape), layer.buffers(reserve, outputs.shape[0])
    grads = grad_output.reshape(outputs.shape) if grad_output is not None else None
    of_input, sums = outputs.new_empty(outputs.shape[0], layer.weights.w_hh.shape[0]), WeightGradients()
    of_h, of_c = torch.zeros_like(layer.h), None if layer.c is None else torch.zeros_like(layer.c)
    last = spans[-1][1] - spans[-1][0]
    terms: tuple[Tensor, ...] = () if grad_hy is None else (grad_hy[:last],)
    term_c = None if grad_cy is None or layer.c is None else grad_cy[:last]
    for number in range(len(spans) - 1, -1, -1):
        start, end = spans[number]
        before = Before(None, *_states_before(layer, number, spans, outputs, buffers))
        kept = Kept(outputs[start:end], [buffer[start:end] for buffer in buffers])
        grad = _sum(None if grads is None else grads[start:end], terms, kept.h)
        back = layer.cell.backward(grad, term_c, before, layer.weights, kept, of_input[start:end], sums)
        earlier = layer.h.shape[0] if number == 0 else spans[number - 1][1] - spans[number - 1][0]
        if number == 0:
            of_h[: end - start] += _sum(None, back.h, kept.h)
            if of_c is not None and back.c is not None:
                of_c[: end - start] += back.c
            break
        terms = _for_rows(back.h, earlier, grad_hy, of_h)
        term_c = None if back.c is None else _for_rows((back.c,), earlier, grad_cy, of_c)[0]
    found = (of_input.view(*output.shape[:-1], -1), of_h, of_c, sums.w_hh, sums.b_hh, sums.w_hr)
    return tuple(output.new_empty(0) if grad is None else grad for grad in found)


def _states_before(
    layer: _Layer, number: int, spans: list[tuple[int, int]], outputs: Tensor, buffers: list[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """h and c that a step started from."""
    count = spans[number][1] - spans[number][0]
    if number == 0:
        return layer.h[:count], None if layer.c is None else layer.c[:count]
    start, end = spans[number - 1]
    h = _fitted(outputs[start:end], count, layer.h)
    if layer.c is None or layer.cell.c_at is None:
        return h, None
    return h, _fitted(buffers[layer.cell.c_at][start:end], count, layer.c)


def _sum(first: Tensor | None, terms: tuple[Tensor, ...], like: Tensor) -> Tensor:
    """Of all, in their order; zeros where there are none."""
    total = first
    for term in terms:
        total = term if total is None else total + term
    return torch.zeros_like(like) if total is None else total


def _for_rows(
    terms: tuple[Tensor, ...], rows: int, of_last: Tensor | None, of_first: Tensor | None
) -> tuple[Tensor, ...]:
    """The terms of a step for the step before it, which has so many rows.

    Those that this step lacks ended with the one before, and have the gradient of the last state; those that are new to
    it began with the first state. As eager cuts and joins states there, the terms are one.
    """
    count = terms[0].shape[0]
    if rows == count:
        return terms
    total = _sum(None, terms, terms[0])
    if rows < count:
        assert of_first is not None
        of_first[rows:count] += total[rows:]
        return (total[:rows],)
    ended = total.new_zeros(rows - count, total.shape[1]) if of_last is None else of_last[count:rows]
    return (torch.cat((total, ended), 0),)


def _fake_forward(from_input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layer, new = _layer_of(*arguments), from_input.new_empty
    cy = new(0) if layer.c is None else new(layer.c.shape)
    output = new(*from_input.shape[:-1], layer.h.shape[-1])
    return output, new(layer.h.shape), cy, new(layer.reserve_elements(from_input))


def _fake_backward(
    grad_output: Tensor | None,  # noqa: ARG001
    grad_hy: Tensor | None,  # noqa: ARG001
    grad_cy: Tensor | None,  # noqa: ARG001
    output: Tensor,
    reserve: Tensor,  # noqa: ARG001
    *arguments: Any,
) -> tuple[Tensor, ...]:
    layer = _layer_of(*arguments)
    of_input = output.new_empty(*output.shape[:-1], layer.weights.w_hh.shape[0])
    others = (layer.h, layer.c, *layer.weights)
    return of_input, *(output.new_empty(0 if tensor is None else tensor.shape) for tensor in others)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _from_input, *tensors, ctx.kind, ctx.reverse = inputs
    ctx.save_for_backward(output[0], output[3], *tensors)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if not any(grad is not None for grad in grads[:3]):
        return (None,) * 9
    found = recurrence_backward(*grads[:3], *ctx.saved_tensors, ctx.kind, ctx.reverse)
    places = (0, 2, 3, 4, 5, 6)  # batch sizes have none
    gradients: list[Tensor | None] = [None] * 9
    for place, grad in zip(places, found, strict=True):
        gradients[place] = grad if ctx.needs_input_grad[place] else None
    return tuple(gradients)


_LAYER = "Tensor? batch_sizes, Tensor h, Tensor? c, Tensor w_hh, Tensor? b_hh, Tensor? w_hr, "
_LAYER += "str kind, bool reverse"
recurrence_backward = define(
    f"recurrence_backward(Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, Tensor output, Tensor reserve, {_LAYER})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
recurrence = define(
    f"recurrence(Tensor from_input, {_LAYER}) -> (Tensor output, Tensor hy, Tensor cy, Tensor reserve)", _forward, _fake_forward
)
torch.library.register_autograd("graphopt::recurrence", _differentiate, setup_context=_keep)
