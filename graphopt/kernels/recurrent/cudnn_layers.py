"""`torch.ops.graphopt.cudnn_layers`: recurrent layers by cuDNN, as eager runs them on CUDA, without dropout in between.

`cudnn_layers(input, h, c, weights, batch_sizes, kind, has_biases, num_layers, bidirectional, train)` gives
`(output, hy, cy, reserve)`. The input is [steps, batch, features], the states [layers × directions, batch, size], c
None but for an LSTM; `cy` is empty where there is none. `weights` are in torch's order. All are of one dtype. Of packed
sequences the input is [rows, features], and `batch_sizes`, else None, the rows of each step (int64, on the CPU).

Of ATen's `_cudnn_rnn` tracing knows no reserve. It also takes the weights in one piece of memory, which a graph's
inputs need not be: both directions copy them there, and let go of the copy.

`cudnn_layers_backward` gives the gradients of input, states and weights; of those of the three outputs None counts as
zeros, but not all are None. cuDNN writes into the reserve, so that it must run once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from graphopt.kernels.define import define
from graphopt.kernels.recurrent.packing import some_batch_sizes

aten = torch.ops.aten
#: cuDNN's numbers for kinds of layers.
_MODES = {"rnn_relu": 0, "rnn_tanh": 1, "lstm": 2, "gru": 3}


class _CudnnOptions(NamedTuple):
    """As the op takes them."""

    batch_sizes: Tensor | None
    kind: str
    has_biases: bool
    num_layers: int
    bidirectional: bool
    train: bool

    def weights_each(self, h: Tensor, c: Tensor | None) -> int:
        """Weights of one direction of one layer."""
        return (4 if self.has_biases else 2) + (self.projection(h, c) > 0)

    @staticmethod
    def projection(h: Tensor, c: Tensor | None) -> int:
        """The size of h where it is not c's, else 0."""
        return 0 if c is None or c.shape[2] == h.shape[2] else h.shape[2]

    def for_aten(self, h: Tensor, c: Tensor | None) -> tuple[Any, ...]:
        """From the mode to the batch sizes."""
        hidden = (h if c is None else c).shape[2]
        sizes = (_MODES[self.kind], hidden, self.projection(h, c), self.num_layers)
        rows = [] if self.batch_sizes is None else self.batch_sizes.tolist()
        return *sizes, False, 0.0, self.train, self.bidirectional, rows


class _Sizes(NamedTuple):
    """Of an input and of states; `steps` are those of packed sequences, else None."""

    input: tuple[int, ...]
    steps: int | None
    batch: int
    hidden: int
    projection: int


def _forward(
    input: Tensor, h: Tensor, c: Tensor | None, weights: Sequence[Tensor], *given: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = _CudnnOptions(*given)
    each = options.weights_each(h, c)
    found = aten._cudnn_rnn.default(input, list(weights), each, None, h, c, *options.for_aten(h, c), None)
    output, hy, cy, reserve, _ = found
    return output, hy, input.new_empty(0) if c is None else cy, reserve


def _backward(
    grad_output: Tensor | None,
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    output: Tensor,
    reserve: Tensor,
    input: Tensor,
    h: Tensor,
    c: Tensor | None,
    weights: Sequence[Tensor],
    *given: Any,
) -> list[Tensor]:
    options = _CudnnOptions(*given)
    each, arguments = options.weights_each(h, c), options.for_aten(h, c)
    mode, hidden, projection, layers, batch_first, _, _, bidirectional, _ = arguments
    # it lays the copies out and leaves the weights as they are, but for these names of them
    names = [weight.detach() for weight in weights]
    buffer = torch._cudnn_rnn_flatten_weight(
        names, each, input.shape[2], mode, hidden, projection, layers, batch_first, bidirectional
    )
    grads = (grad_output, grad_hy, None if c is None else grad_cy)
    wanted = [True, True, c is not None, True]
    of_input, of_h, of_c, of_weights = aten._cudnn_rnn_backward.default(
        input, names, each, buffer, h, c, output, *grads, *arguments, None, reserve, wanted
    )
    # those of the weights are views of one buffer, which would live as long as any of them
    return [of_input, of_h, *([] if c is None else [of_c]), *(grad.clone() for grad in of_weights)]


def _fake_forward(
    input: Tensor,
    h: Tensor,
    c: Tensor | None,
    weights: Sequence[Tensor],  # noqa: ARG001
    *given: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = _CudnnOptions(*given)
    *_, hidden = (h if c is None else c).shape
    projection = options.projection(h, c)
    size = (projection or hidden) * (2 if options.bidirectional else 1)
    steps = None if options.batch_sizes is None else options.batch_sizes.shape[0]
    sizes = _Sizes(tuple(map(int, input.shape)), steps, int(h.shape[1]), int(hidden), int(projection))
    reserve = reserve_bytes(sizes, options._replace(batch_sizes=None), input.dtype, input.device)
    cy = input.new_empty(0) if c is None else torch.empty_like(c)
    flat = input.new_empty(reserve, dtype=torch.uint8)
    return input.new_empty(*input.shape[:-1], size), input.new_empty(h.shape), cy, flat


def _fake_backward(
    grad_output: Tensor | None,  # noqa: ARG001
    grad_hy: Tensor | None,  # noqa: ARG001
    grad_cy: Tensor | None,  # noqa: ARG001
    output: Tensor,  # noqa: ARG001
    reserve: Tensor,  # noqa: ARG001
    input: Tensor,
    h: Tensor,
    c: Tensor | None,
    weights: Sequence[Tensor],
    *_: Any,
) -> list[Tensor]:
    return [input.new_empty(tensor.shape) for tensor in (input, h, c, *weights) if tensor is not None]


@cache
def reserve_bytes(sizes: _Sizes, options: _CudnnOptions, dtype: torch.dtype, device: torch.device) -> int:
    """The bytes that a forward of such sizes keeps for its backward; only cuDNN knows them, so it is run.

    0 where there is no such device: then nothing is run either.
    """
    if not options.train or device.type != "cuda" or not torch.cuda.is_available():
        return 0
    hidden, projection, features = sizes.hidden, sizes.projection, sizes.input[-1]
    gates = {"lstm": 4, "gru": 3}.get(options.kind, 1) * hidden
    directions, size = 2 if options.bidirectional else 1, projection or hidden
    with _disable_current_modes(), torch.no_grad():

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        weights = []
        for i in range(options.num_layers * directions):
            wide = features if i < directions else size * directions
            weights += [zeros(gates, wide), zeros(gates, size)]
            weights += [zeros(gates), zeros(gates)] if options.has_biases else []
            weights += [zeros(projection, hidden)] if projection else []
        states = options.num_layers * directions
        batch = sizes.batch
        c = zeros(states, batch, hidden) if options.kind == "lstm" else None
        if sizes.steps is not None:
            rows = torch.tensor(some_batch_sizes(sizes.input[0], sizes.steps, batch))
            options = options._replace(batch_sizes=rows)
        return _forward(zeros(*sizes.input), zeros(states, batch, size), c, weights, *options)[3].numel()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, h, c, weights, batch_sizes, *ctx.options = inputs
    ctx.save_for_backward(output[0], output[3], input, h, c, batch_sizes, *weights)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    output, reserve, input, h, c, batch_sizes, *weights = ctx.saved_tensors
    if not any(grad is not None for grad in grads[:3]):
        return None, None, None, [None] * len(weights), *[None] * 6
    given = [None if grad is None else grad.contiguous() for grad in grads[:3]]
    found = cudnn_layers_backward(*given, output, reserve, input, h, c, weights, batch_sizes, *ctx.options)
    of_input, of_h, *others = found
    of_c = None if c is None else others.pop(0)
    return of_input, of_h, of_c, others, *[None] * 6


_LAYERS = "Tensor input, Tensor h, Tensor? c, Tensor[] weights, Tensor? batch_sizes, str kind, bool has_biases, "
_LAYERS += "int num_layers, bool bidirectional, bool train"
cudnn_layers_backward = define(
    "cudnn_layers_backward(Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, Tensor output, Tensor reserve, "
    f"{_LAYERS}) -> Tensor[]",
    _backward,
    _fake_backward,
)
cudnn_layers = define(
    f"cudnn_layers({_LAYERS}) -> (Tensor output, Tensor hy, Tensor cy, Tensor reserve)", _forward, _fake_forward
)
torch.library.register_autograd("graphopt::cudnn_layers", _differentiate, setup_context=_keep)
