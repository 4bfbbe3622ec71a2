"""LSTM, GRU and RNN: torch's own layers, with the gates in torch's order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.ops.node import Handler, OnnxNode, integers, is_known

#: Places of torch's gates among ONNX's: i f g o among i o f c, r z n among z r h.
_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
#: Steps of a layer that are written out one by one.
_MOST_STEPS = 1024
_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def _directions(node: OnnxNode) -> int:
    """1, or 2 for both; raises OnnxError for forms that torch has not."""
    direction = node.get("direction", "forward")
    count = 2 if direction == "bidirectional" else 1
    usual = list(_ACTIVATIONS[node.op]) * count
    given = [name if isinstance(name, str) else name.decode() for name in node.get("activations", usual)]
    allowed = [usual, ["Relu"] * count] if node.op == "RNN" else [usual]
    if [name.capitalize() for name in given] not in allowed:
        raise OnnxError(f"activations {given} are not known here")
    if node.get("clip") is not None or node.get("input_forget", 0):
        raise OnnxError("clip and input_forget are not known here")
    return count


def _ordered(op: str, weights: Tensor, hidden: int) -> Tensor:
    """Rows of gates in torch's order."""
    order = _ORDER[op]
    if len(order) == 1:
        return weights
    return torch.cat([weights[gate * hidden : (gate + 1) * hidden] for gate in order])


def _parameters(node: OnnxNode, w: Tensor, r: Tensor, b: Tensor | None, directions: int) -> list[Tensor]:
    hidden = node.get("hidden_size") or r.shape[2]
    gates = len(_ORDER[node.op]) * hidden
    found = []
    for way in range(directions):
        found += [_ordered(node.op, w[way], hidden), _ordered(node.op, r[way], hidden)]
        if b is not None:
            found += [_ordered(node.op, b[way, :gates], hidden), _ordered(node.op, b[way, gates:], hidden)]
    return found


def _is_zero(state: Tensor | None) -> bool:
    """Whether a state is zero: it is then made as large as the batch of each call."""
    return state is None or (is_known(state) and not bool(state.any()))


def _run(
    node: OnnxNode, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Tensor | None, *states: Any
) -> Any:
    directions, layout = _directions(node), node.get("layout", 0)
    x = x.transpose(0, 1) if layout else x
    if lengths is not None and not (is_known(lengths) and set(integers(lengths, "sequence_lens")) == {x.shape[0]}):
        raise OnnxError("sequences of several lengths in one batch are not known here")
    x = x.reshape(list(x.shape))  # torch's layers do not check: a batch of another size would crash them
    hidden = node.get("hidden_size") or r.shape[2]
    zero = x.new_zeros(directions, x.shape[1], hidden)
    start = [zero if _is_zero(each) else (each.transpose(0, 1) if layout else each) for each in states]
    weights = _parameters(node, w, r, b, directions)
    backwards = node.get("direction", "forward") == "reverse"
    y = x.flip(0) if backwards else x
    options = (b is not None, 1, 0.0, False, directions == 2, False)
    if node.op == "LSTM":
        y, *last = torch.lstm(y, tuple(start), weights, *options)
    else:
        relu = node.op == "RNN" and str(node.get("activations", ["Tanh"])[0]).capitalize() == "Relu"
        function = torch.gru if node.op == "GRU" else torch.rnn_relu if relu else torch.rnn_tanh
        y, *last = function(y, start[0], weights, *options)
    y = y.flip(0) if backwards else y
    y = y.reshape(*y.shape[:2], directions, hidden)  # ONNX: [length, directions, batch, hidden]
    if layout:
        return (y.transpose(0, 1), *(each.transpose(0, 1) for each in last))
    return (y.transpose(1, 2), *last)


def _lstm(
    node: OnnxNode,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> Any:
    if peepholes is not None and not (is_known(peepholes) and not bool(peepholes.any())):
        raise OnnxError("peepholes are not known here")
    return _run(node, x, w, r, b, lengths, hidden, cell)


def _gru(
    node: OnnxNode,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> Any:
    if node.op == "GRU" and not node.get("linear_before_reset", 0):
        return _gru_reset_first(node, x, w, r, b, lengths, hidden)
    return _run(node, x, w, r, b, lengths, hidden)


def _gru_reset_first(
    node: OnnxNode, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Tensor | None, start: Tensor | None
) -> Any:
    """ONNX's own GRU, which resets the state in front of the product: torch has no such layer, so step by step."""
    if _directions(node) != 1 or lengths is not None:
        raise OnnxError("linear_before_reset=0 in two directions, or with lengths, is not known here")
    layout, backwards = node.get("layout", 0), node.get("direction", "forward") == "reverse"
    x = x.transpose(0, 1) if layout else x
    if x.shape[0] > _MOST_STEPS:
        raise OnnxError(f"linear_before_reset=0 with {x.shape[0]} steps, where {_MOST_STEPS} may be")
    size = r.shape[2]
    state = x.new_zeros(x.shape[1], size) if start is None else (start[:, 0] if layout else start[0])
    bias = b[0, : 3 * size] + b[0, 3 * size :] if b is not None else None
    given = torch.nn.functional.linear(x, w[0], bias)
    steps = []
    for step in reversed(range(x.shape[0])) if backwards else range(x.shape[0]):
        both = given[step][:, : 2 * size] + torch.matmul(state, r[0, : 2 * size].transpose(0, 1))
        update, reset = torch.sigmoid(both).chunk(2, 1)
        new = torch.tanh(given[step][:, 2 * size :] + torch.matmul(reset * state, r[0, 2 * size :].transpose(0, 1)))
        state = (1 - update) * new + update * state
        steps.append(state)
    y = torch.stack(steps[::-1] if backwards else steps).unsqueeze(1)
    return (y.permute(2, 0, 1, 3), state.unsqueeze(1)) if layout else (y, state.unsqueeze(0))


RECURRENT: dict[str, Handler] = {"LSTM": _lstm, "GRU": _gru, "RNN": _gru}
