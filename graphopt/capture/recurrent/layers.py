"""nn.LSTM, nn.GRU and nn.RNN in what Dynamo captured: the very kernels that eager runs, as ops that are traced.

Dynamo leaves a call of `torch.lstm`, and AOTAutograd would take torch's decompositions of it: they round otherwise than
eager's kernels, and of oneDNN's layer they lose what its backward needs. So the calls are replaced before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, update_wrapper
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, fx
from torch._C import DispatchKey

from graphopt.capture.recurrent.eagers_kernels import are_few, by_cudnn, by_onednn
from graphopt.capture.recurrent.loops import KINDS, Weights, loop_layer, one_weights
from graphopt.capture.recurrent.packed import BATCH_SIZES, is_packed
from graphopt.kernels.recurrent.cudnn_layers import cudnn_layers
from graphopt.kernels.recurrent.lstm_layer import lstm_layer
from graphopt.kernels.recurrent.packing import some_batch_sizes
from graphopt.kernels.recurrent.recurrence import recurrence

F = torch.nn.functional


class Layers(NamedTuple):
    """What torch's recurrent functions take behind input, states and weights, but for `batch_first`."""

    kind: str
    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool

    @property
    def directions(self) -> int:
        """Of each layer."""
        return 2 if self.bidirectional else 1


class Known(NamedTuple):
    """Of one call: whether another has some of its weights too, whether these are parameters, and what is packed.

    `batch_sizes`: the rows of each step, where the capture is for these alone.
    """

    shared: bool = False
    parameters: bool = True
    batch_sizes: tuple[int, ...] | None = None


class Packed(NamedTuple):
    """The rows of each step of packed sequences: as data, and as numbers, where the capture is for these alone."""

    batch_sizes: Tensor
    known: tuple[int, ...] | None


#: One layer: its input, its states [directions, batch, size] and its weights, to its output and its last states.
Layer = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, Sequence[Tensor]]]


def with_recurrent_layers(module: fx.GraphModule) -> None:
    """Replace the calls of torch's recurrent functions in one of Dynamo's graphs, and in the graphs inside of it."""
    kinds = {getattr(torch, kind): kind for kind in KINDS}
    for part in module.modules():
        if not isinstance(part, fx.GraphModule):
            continue
        calls = [node for node in part.graph.nodes if node.op == "call_function" and node.target in kinds]
        readers = Counter(weight for node in calls for weight in set(node.all_input_nodes))
        for node in calls:
            weights = _weights_of(node)
            found = Known(
                shared=any(readers[weight] > 1 for weight in weights),
                parameters=all(weight.op in ("placeholder", "get_attr") for weight in weights),
                batch_sizes=_batch_sizes_of(node),
            )
            # code that calls it is written by its name
            node.target = update_wrapper(partial(_recurrent, kinds[node.target], found), _recurrent)
        if calls:
            part.recompile()


@contextmanager
def few_fakes() -> Iterator[None]:
    """Let Dynamo, which runs what it captures on fake tensors, run the few ops that replace a call, and not each step.

    With torch's decompositions 300 steps of two bidirectional GRU layers took 40 s instead of 3.
    """
    ops = [(kind, getattr(torch.ops.aten, kind)) for kind in KINDS]
    changed = [(kind, overload) for kind, op in ops for overload in (op.input, op.data)]
    with ExitStack() as stack:
        for kind, op in changed:
            run = partial(_fake_recurrent, kind)
            kernels = dict.fromkeys((DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd), run)
            stack.callback(op._dispatch_cache.clear)
            stack.enter_context(mock.patch.dict(op.py_kernels, kernels))
            op._dispatch_cache.clear()
        yield


def _fake_recurrent(kind: str, *arguments: Any) -> tuple[Tensor, ...]:
    """What a call gives, as far as its shapes and types go."""
    if not is_packed(arguments):
        return _recurrent(kind, Known(), *arguments)
    data, batch_sizes, hx = arguments[:3]
    batch = (hx[0] if kind == "lstm" else hx).shape[1]
    some = some_batch_sizes(data.shape[0], batch_sizes.shape[0], batch)
    return _recurrent(kind, Known(batch_sizes=tuple(some)), *arguments)


def _weights_of(call: fx.Node) -> list[fx.Node]:
    lists = [argument for argument in call.args if isinstance(argument, list)]
    return [weight for weight in lists[-1] if isinstance(weight, fx.Node)]


def _batch_sizes_of(call: fx.Node) -> tuple[int, ...] | None:
    """How many rows each step of packed sequences has, where the capture is for these numbers."""
    return call.args[1].meta.get(BATCH_SIZES) if is_packed(call.args) else None  # type: ignore[union-attr]


def _recurrent(kind: str, known: Known, *arguments: Any) -> tuple[Tensor, ...]:
    """As `torch.lstm(input, hx, weights, ..., batch_first)`, or of packed sequences (data, batch_sizes, hx, ...)."""
    if is_packed(arguments):
        input, batch_sizes, hx, weights, *options = arguments
        packed, batch_first = Packed(batch_sizes, known.batch_sizes), False
        if _is_onednns_padded(kind, packed, input, hx, weights):
            padded = input.unflatten(0, (batch_sizes.shape[0], -1))
            output, *states = _recurrent(kind, known, padded, hx, weights, *options, False)
            return output.flatten(0, 1), *states
    else:
        input, hx, weights, *options, batch_first = arguments
        packed = None
    layers = Layers(kind, *options)
    state = list(hx) if kind == "lstm" else [hx]
    if known.parameters:
        weights = _cast_once(weights, layers)
    if batch_first:
        input = input.transpose(0, 1)
    layer = _layer_for(input, state, weights, layers, packed, shared=known.shared)
    if by_cudnn(input) and not (layers.dropout and layers.train):
        output, last = layer(input, state, weights)
    else:
        output, *last = _stacked(input, state, weights, layers, layer)
    return output.transpose(0, 1) if batch_first else output, *last


def _is_onednns_padded(kind: str, packed: Packed, data: Tensor, hx: Any, weights: Sequence[Tensor]) -> bool:
    """Whether eager takes packed sequences of one length for what they are: padded ones, for oneDNN's LSTM."""
    if kind != "lstm" or hx[0].shape[2] != hx[1].shape[2] or by_cudnn(data):
        return False
    return data.shape[0] == packed.batch_sizes.shape[0] * hx[0].shape[1] and by_onednn((data, *hx, *weights))


def _layer_for(
    input: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    layers: Layers,
    packed: Packed | None,
    *,
    shared: bool,
) -> Layer:
    """What runs one layer as eager does.

    Autograd adds the gradients of a weight step by step, of one call behind the other's; one op would hand over each
    call's sum. And autocast casts in between.
    """
    if by_cudnn(input):
        return _by_cudnn_layers(layers, packed)
    fused = layers.kind == "lstm" and packed is None and state[0].shape[2] == state[1].shape[2]
    if fused and by_onednn((input, *state, *weights)):
        return _by_lstm_layer(layers)
    if _autocast_dtype(input.device.type) is not None:
        return _as_loop(layers, packed)
    steps = input.shape[0] if packed is None else packed.batch_sizes.shape[0]
    few = steps > 1 and are_few(steps, layers.num_layers, bidirectional=layers.bidirectional)
    loops = shared and few and (packed is None or packed.known is not None)
    return _as_loop(layers, packed) if loops else _by_recurrence(layers, packed)


def _stacked(
    input: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], layers: Layers, layer: Layer
) -> tuple[Tensor, ...]:
    """All layers, with dropout between them: the output, and the last states [layers × directions, batch, size]."""
    each = len(weights) // layers.num_layers
    states = list(zip(*(one.unflatten(0, (layers.num_layers, -1)).unbind(0) for one in state), strict=True))
    last = []
    for i in range(layers.num_layers):
        input, own = layer(input, states[i], weights[i * each : (i + 1) * each])
        last.append(own)
        if layers.dropout != 0 and layers.train and i < layers.num_layers - 1:
            input = torch.dropout(input, layers.dropout, train=True)
    return input, *(torch.cat(one, 0) for one in zip(*last, strict=True))


def _by_lstm_layer(layers: Layers) -> Layer:
    """oneDNN's kernel, once for each direction."""

    def layer(input: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        found = []
        for i, own in enumerate(_of_directions(weights, layers)):
            hx, cx = state[0][i], state[1][i]
            tensors = _in_autocast_dtype(input, *own[:4], hx, cx)
            input_, *others = (tensor if tensor is None else tensor.contiguous() for tensor in tensors)
            found.append(lstm_layer(input_, *others, i == 1, torch.is_grad_enabled())[:3])
        outputs, hy, cy = zip(*found, strict=True)
        return torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0], (torch.stack(hy, 0), torch.stack(cy, 0))

    return layer


def _by_cudnn_layers(layers: Layers, packed: Packed | None) -> Layer:
    """cuDNN's kernel, once for all layers that it is given: one of them at a time where dropout stands between them."""

    def layer(input: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        here = state[0].shape[0] // layers.directions
        options = (layers.kind, layers.has_biases, here, layers.bidirectional, layers.train)
        input, h, c, *cast = _in_autocast_dtype(input, *state, *([None] * (2 - len(state))), *weights)  # type: ignore[assignment]
        dense = [None if tensor is None else tensor.contiguous() for tensor in (input, h, c)]
        output, *last = cudnn_layers(*dense, cast, packed and packed.batch_sizes, *options)
        return output, last[: len(state)]

    return layer


def _as_loop(layers: Layers, packed: Packed | None) -> Layer:
    """Step by step, in small ops."""
    sizes = None if packed is None else packed.known
    assert packed is None or sizes is not None, "a graph must be broken where it cannot be known how long sequences are"

    def layer(input: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        states = list(zip(*(one.unbind(0) for one in state), strict=True))
        output, last = loop_layer(KINDS[layers.kind], input, states, _of_directions(weights, layers), sizes)
        return output, [torch.stack(one, 0) for one in zip(*last, strict=True)]

    return layer


def _by_recurrence(layers: Layers, packed: Packed | None) -> Layer:
    """The product with the input, and one op for what is left, once for each direction."""

    def layer(input: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        found = []
        firsts = zip(*(one.unbind(0) for one in state), strict=True)
        for i, (first, own) in enumerate(zip(firsts, _of_directions(weights, layers), strict=True)):
            w_ih, w_hh, b_ih, b_hh, w_hr = own
            h, c, *_ = (*first, None)
            from_input = F.linear(input, w_ih, b_ih)
            sizes = packed and packed.batch_sizes
            found.append(recurrence(from_input, sizes, h, c, w_hh, b_hh, w_hr, layers.kind, i == 1)[:3])
        outputs, *last = zip(*found, strict=True)
        output = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
        return output, [torch.stack(one, 0) for one in last[: len(state)]]

    return layer


def _of_directions(weights: Sequence[Tensor], layers: Layers) -> list[Weights]:
    each = len(weights) // layers.directions
    return [one_weights(weights[i : i + each], layers.has_biases) for i in range(0, len(weights), each)]


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def _cast_once(weights: Sequence[Tensor], layers: Layers) -> list[Tensor]:
    """As autocast's cache does with parameters: the steps' gradients are added in its dtype, and then cast.

    Not so with projections: it is handed their transposes.
    """
    dtype = _autocast_dtype(weights[0].device.type)
    each = len(weights) // (layers.num_layers * layers.directions)
    products = 4 if layers.has_biases else 2
    return [
        w.to(dtype) if dtype is not None and w.dtype is torch.float32 and i % each < products else w
        for i, w in enumerate(weights)
    ]


def _in_autocast_dtype(*tensors: Tensor | None) -> list[Tensor | None]:
    """As autocast hands them to fused layers: its rules know ATen's ops, and not those that stand for them."""
    dtype = next(_autocast_dtype(tensor.device.type) for tensor in tensors if tensor is not None)
    narrow = (torch.float32, torch.float16, torch.bfloat16)
    return [t if t is None or dtype is None or t.dtype not in narrow else t.to(dtype) for t in tensors]
