"""Recurrent layers step by step, with the very ops that eager runs on a CPU (aten/src/ATen/native/RNN.cpp).

The same ops in the same order give the same bits, in the backward too, whose sums autograd takes in that order.
torch's own decompositions (torch/_decomp/decompositions.py) add and concatenate otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

F = torch.nn.functional

#: Weights of one direction: those of the input and of the state, their biases or None, and the projection or None.
Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
#: From what the input gives at one step, and the states before it, to the states behind it; the first is the output.
Cell = Callable[[Tensor, tuple[Tensor, ...], Weights], tuple[Tensor, ...]]


def lstm_cell(from_input: Tensor, state: tuple[Tensor, ...], weights: Weights) -> tuple[Tensor, ...]:
    """States [batch, hidden or projected] and [batch, hidden]; of the input come gates [batch, 4 × hidden]."""
    hx, cx = state
    gates = F.linear(hx, weights[1], weights[3]).add_(from_input)
    gate_i, gate_f, gate_g, gate_o = gates.unsafe_chunk(4, 1)
    gate_i, gate_f, gate_g, gate_o = gate_i.sigmoid_(), gate_f.sigmoid_(), gate_g.tanh_(), gate_o.sigmoid_()
    cy = (gate_f * cx).add_(gate_i * gate_g)
    hy = gate_o * cy.tanh()
    return hy if weights[4] is None else torch.matmul(hy, weights[4].t()), cy


def gru_cell(from_input: Tensor, state: tuple[Tensor, ...], weights: Weights) -> tuple[Tensor, ...]:
    """A state [batch, hidden]; of the input come gates [batch, 3 × hidden]."""
    halves = [2 * state[0].shape[1], state[0].shape[1]]
    input_rz, input_n = from_input.unsafe_split_with_sizes(halves, 1)
    state_rz, state_n = F.linear(state[0], weights[1], weights[3]).unsafe_split_with_sizes(halves, 1)
    # eager adds in place, row by row inside of all gates; of a sum with no gaps the vectors would end elsewhere
    reset, update = (state_rz + input_rz).unsafe_chunk(2, 1)
    reset, update = reset.sigmoid_(), update.sigmoid_()
    new = (input_n + state_n * reset).tanh_()
    return ((state[0] - new).mul_(update).add_(new),)


def tanh_cell(from_input: Tensor, state: tuple[Tensor, ...], weights: Weights) -> tuple[Tensor, ...]:
    """A state [batch, hidden]; of the input comes as much."""
    return (torch.tanh(F.linear(state[0], weights[1], weights[3]).add_(from_input)),)


def relu_cell(from_input: Tensor, state: tuple[Tensor, ...], weights: Weights) -> tuple[Tensor, ...]:
    """A state [batch, hidden]; of the input comes as much."""
    return (torch.relu(F.linear(state[0], weights[1], weights[3]).add_(from_input)),)


#: By the name of torch's function.
KINDS: dict[str, Cell] = {"lstm": lstm_cell, "gru": gru_cell, "rnn_tanh": tanh_cell, "rnn_relu": relu_cell}


def loop_layer(
    cell: Cell,
    input: Tensor,
    states: Sequence[tuple[Tensor, ...]],
    weights: Sequence[Weights],
    batch_sizes: Sequence[int] | None = None,
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """One layer with one or two directions: the output [steps, batch, directions × size], and each one's last states.

    The input is [steps, batch, features]; states and weights are one direction's, then the other's. Of packed sequences
    input and output are [rows, ...], and `batch_sizes` are the rows of each step.
    """
    found = []
    for i, (state, own) in enumerate(zip(states, weights, strict=True)):
        if batch_sizes is None:
            found.append(_one_direction(cell, input, state, own, reverse=i == 1))
        else:
            run = _packed_backward if i == 1 else _packed_forward
            found.append(run(cell, F.linear(input, own[0], own[2]), state, own, batch_sizes))
    outputs = [output for output, _ in found]
    output = torch.cat(outputs, outputs[0].dim() - 1) if len(outputs) > 1 else outputs[0]
    return output, [last for _, last in found]


def one_weights(weights: Sequence[Tensor], has_biases: bool) -> Weights:
    """One direction's weights as torch's functions take them, in a row."""
    b_ih, b_hh = weights[2:4] if has_biases else (None, None)
    projection = weights[4 if has_biases else 2 :]
    return weights[0], weights[1], b_ih, b_hh, projection[0] if projection else None


def _one_direction(
    cell: Cell, input: Tensor, state: tuple[Tensor, ...], weights: Weights, *, reverse: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    steps = F.linear(input, weights[0], weights[2]).unbind(0)
    outputs = []
    for step in reversed(steps) if reverse else steps:
        state = cell(step, state, weights)
        outputs.append(state[0])
    if reverse:
        outputs.reverse()
    return torch.stack(outputs, 0), state


def _packed_forward(
    cell: Cell, from_input: Tensor, state: tuple[Tensor, ...], weights: Weights, batch_sizes: Sequence[int]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    outputs, ended, before = [], [], batch_sizes[0]
    for step, rows in zip(_narrow(from_input, batch_sizes), batch_sizes, strict=True):
        if rows < before:
            ended.append(tuple(each.narrow(0, rows, before - rows) for each in state))
            state = tuple(each.narrow(0, 0, rows) for each in state)
        state, before = cell(step, state, weights), rows
        outputs.append(state[0])
    ended.append(state)
    return torch.cat(outputs, 0), tuple(torch.cat(each[::-1], 0) for each in zip(*ended, strict=True))


def _packed_backward(
    cell: Cell, from_input: Tensor, first: tuple[Tensor, ...], weights: Weights, batch_sizes: Sequence[int]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    outputs, before = [], batch_sizes[-1]
    state = tuple(each.narrow(0, 0, before) for each in first)
    for step, rows in zip(_narrow(from_input, batch_sizes)[::-1], batch_sizes[::-1], strict=True):
        if rows > before:
            begun = tuple(each.narrow(0, before, rows - before) for each in first)
            state = tuple(torch.cat(each, 0) for each in zip(state, begun, strict=True))
        state, before = cell(step, state, weights), rows
        outputs.append(state[0])
    return torch.cat(outputs[::-1], 0), state


def _narrow(from_input: Tensor, batch_sizes: Sequence[int]) -> list[Tensor]:
    """The rows of each step."""
    ends = list(accumulate(batch_sizes))
    return [from_input.narrow(0, end - rows, rows) for end, rows in zip(ends, batch_sizes, strict=True)]
