"""`torch.ops.graphopt.recurrence`: one direction of one recurrent layer, behind its input's product.

Eager runs it on a CPU as a loop of small ops, whose bits these are, in the backward too; as ops of a graph they would
be thousands.

`recurrence(from_input, batch_sizes, h, c, w_hh, b_hh, w_hr, kind, reverse)` gives `(output, hy, cy, reserve)`. `kind`
names torch's function: "lstm", "gru", "rnn_tanh" or "rnn_relu". `from_input` is what the input gives for each gate,
[steps, batch, gates × hidden]. Of packed sequences it is [rows, gates × hidden], and `batch_sizes`, else None, says how
many rows there are of each step: int64, on the CPU, none larger than the one before. The states h [batch, size] and,
for an LSTM alone, c [batch, hidden] are those before the first step of each sequence, hy and cy those behind its last;
`cy` is empty where there is none. All are of one dtype. `reserve` is flat: what the backward needs beside the rest.

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

#: Of the memory that PyTorch hands out on a CPU, in bytes.
_ALIGNMENT = 64


class _Layer(NamedTuple):
    """What forward and backward are given alike."""

    batch_sizes: Tensor | None
    h: Tensor
    c: Tensor | None
    weights: StateWeights
    cell: Cell
    reverse: bool

    def in_order(self, steps: int) -> list[int]:
        """The steps in the order in which they are run."""
        return list(range(steps)[::-1] if self.reverse else range(steps))

    def by_step(self, tensor: Tensor) -> Sequence[Tensor]:
        """The rows of each step."""
        return tensor.unbind(0) if self.batch_sizes is None else tensor.split(self.batch_sizes.tolist())

    def reserve_elements(self, rows: int) -> int:
        """How many numbers are kept."""
        return rows * sum(self.cell.widths) * self._hidden_size

    def buffers(self, reserve: Tensor) -> list[Sequence[Tensor]]:
        """The reserve: of each thing that is kept, the rows of each step."""
        widths = [width * self._hidden_size for width in self.cell.widths]
        rows = reserve.numel() // max(sum(widths), 1)
        parts = reserve.split([rows * width for width in widths]) if widths else ()
        batch = self.h.shape[:1] if self.batch_sizes is None else ()
        return [self.by_step(part.view(-1, *batch, width)) for part, width in zip(parts, widths, strict=True)]

    def before(self, rows: int, h: Tensor | None = None, c: Tensor | None = None) -> Before:
        """What a step of so many rows starts from, by the states behind the step before it."""
        entering = _entering(h, self.h, rows)
        if h is not None and h.shape[0] >= rows and rows and entering[0].nbytes % _ALIGNMENT:
            # eager's is in memory of its own, and MKL's products round by where their rows begin
            entering = entering.clone()
        return Before(entering, None if self.c is None else _entering(c, self.c, rows))

    def behind(self, kept: LeftByStep) -> tuple[Tensor, Tensor | None]:
        """The states behind a step."""
        return kept.h, None if self.cell.c_at is None else kept.reserve[self.cell.c_at]

    @property
    def _hidden_size(self) -> int:
        return self.weights.w_hh.shape[0] // self.cell.gates


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
    return _Layer(batch_sizes, h, c, StateWeights(w_hh, b_hh, w_hr), CELLS[kind], reverse)


def _forward(from_input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layer = _layer_of(*arguments)
    output = from_input.new_empty(*from_input.shape[:-1], layer.h.shape[1])
    reserve = from_input.new_empty(layer.reserve_elements(from_input.shape[:-1].numel()))
    hy = from_input.new_empty(layer.h.shape)
    cy = from_input.new_empty(0 if layer.c is None else layer.c.shape)
    inputs, outputs, buffers = layer.by_step(from_input), layer.by_step(output), layer.buffers(reserve)
    h, c = None, None
    for i in layer.in_order(len(inputs)):
        rows = inputs[i].shape[0]
        if h is not None:
            _end(h, c, rows, hy, cy)
        kept = LeftByStep(outputs[i], [buffer[i] for buffer in buffers])
        layer.cell.forward(inputs[i], layer.before(rows, h, c), layer.weights, kept)
        h, c = layer.behind(kept)
    _end(layer.h if h is None else h, layer.c if h is None else c, 0, hy, cy)
    return output, hy, cy, reserve


def _entering(state: Tensor | None, first: Tensor, rows: int) -> Tensor:
    """The state before a step of so many rows: some sequences ended with the step before it, or begin here."""
    if state is None:
        return first[:rows]
    known = state.shape[0]
    return state[:rows] if rows <= known else torch.cat((state, first[known:rows]), 0)


def _end(h: Tensor, c: Tensor | None, rows: int, hy: Tensor, cy: Tensor) -> None:
    """Write the last states of the sequences behind the first so many."""
    for state, last in ((h, hy), (c, cy)):
        if state is not None and state.shape[0] > rows:
            last[rows : state.shape[0]].copy_(state[rows:])


def _backward(
    grad_output: Tensor | None,
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    output: Tensor,
    reserve: Tensor,
    *arguments: Any,
) -> tuple[Tensor, ...]:
    layer, sums = _layer_of(*arguments), WeightGradients()
    of_input = output.new_empty(*output.shape[:-1], layer.weights.w_hh.shape[0])
    of_h, of_c = torch.empty_like(layer.h), None if layer.c is None else torch.empty_like(layer.c)
    grads, of_inputs = None if grad_output is None else layer.by_step(grad_output), layer.by_step(of_input)
    outputs, buffers = layer.by_step(output), layer.buffers(reserve)
    left = [LeftByStep(h, [buffer[i] for buffer in buffers]) for i, h in enumerate(outputs)]
    terms: tuple[Tensor, ...] = ()
    terms_c: tuple[Tensor, ...] = ()
    order = layer.in_order(len(outputs))
    while order:
        i, kept = order[-1], left[order.pop()]
        rows = kept.h.shape[0]
        terms, terms_c = _behind(terms, rows, grad_hy, of_h), _behind(terms_c, rows, grad_cy, of_c)
        # what a step needs is in no variable, so that it goes before the next one needs as much
        terms, found = layer.cell.backward(
            _sum(grads[i] if grads else None, terms, kept.h),
            next(iter(terms_c), None),
            layer.before(rows, *(layer.behind(left[order[-1]]) if order else ())),
            layer.weights,
            kept,
            of_inputs[i],
            sums,
        )
        terms_c = () if found is None else (found,)
    _write_first(of_h, terms)
    if of_c is not None:
        _write_first(of_c, terms_c)
    all_found = (of_input, of_h, of_c, sums.w_hh, sums.b_hh, sums.w_hr)
    return tuple(output.new_empty(0) if grad is None else grad for grad in all_found)


def _behind(
    terms: tuple[Tensor, ...], rows: int, of_last: Tensor | None, of_first: Tensor | None
) -> tuple[Tensor, ...]:
    """Terms of the gradient of a state behind a step of so many rows, from those of the state before the next one.

    Of sequences that end there it comes from the last states; that of those that begin at the next step goes to the
    first ones. Eager adds the terms up before it does either.
    """
    if not terms:
        return () if of_last is None else (of_last[:rows],)
    known = terms[0].shape[0]
    if known == rows:
        return terms
    total = _sum(None, terms, terms[0])
    if known > rows:
        assert of_first is not None
        of_first[rows:known].copy_(total[rows:])
        return (total[:rows],)
    ended = total.new_zeros(rows - known, total.shape[1]) if of_last is None else of_last[known:rows]
    return (torch.cat((total, ended), 0),)


def _write_first(of_first: Tensor, terms: tuple[Tensor, ...]) -> None:
    """The gradient of the first states of sequences that begin at the first step that is run."""
    if terms:
        of_first[: terms[0].shape[0]].copy_(_sum(None, terms, terms[0]))
    else:
        of_first.zero_()


def _sum(first: Tensor | None, terms: tuple[Tensor, ...], like: Tensor) -> Tensor:
    """Of all, in their order; zeros where there are none."""
    total = first
    for term in terms:
        total = term if total is None else total + term
    return torch.zeros_like(like) if total is None else total


def _fake_forward(from_input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layer, new, places = _layer_of(*arguments), from_input.new_empty, from_input.shape[:-1]
    cy = new(0) if layer.c is None else new(layer.c.shape)
    return new(*places, layer.h.shape[1]), new(layer.h.shape), cy, new(layer.reserve_elements(places.numel()))


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
    of_input, *others = (grad if want else None for grad, want in zip(found, _wanted(ctx), strict=True))
    return of_input, None, *others, None, None


def _wanted(ctx: Any) -> tuple[bool, ...]:
    of_input, _of_batch_sizes, *others = ctx.needs_input_grad[:7]
    return of_input, *others


_LAYER = "Tensor? batch_sizes, Tensor h, Tensor? c, Tensor w_hh, Tensor? b_hh, Tensor? w_hr, "
_LAYER += "str kind, bool reverse"
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
