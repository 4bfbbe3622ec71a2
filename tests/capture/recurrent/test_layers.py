"""nn.LSTM, nn.GRU and nn.RNN: one graph of few ops, with eager's bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import graphopt
from graphopt.capture.dynamo import settings
from graphopt.capture.recurrent import layers as recurrent
from tests.support.recurrent_models import AnyRecurrent, Options, random_options


def step_of(model: AnyRecurrent, run: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Loss, gradients, the input's among them, and the generator's state."""
    torch.manual_seed(7)
    # autocast's cache casts such an input once for both directions, of which a captured graph knows nothing
    x = x.clone().requires_grad_(not model.options.autocast)
    loss = run(x)
    loss.backward()
    gradients = [x.grad, *(parameter.grad for parameter in model.parameters())]
    return [loss.detach(), *(g for g in gradients if g is not None), torch.get_rng_state()]


def built(options: Options) -> tuple[AnyRecurrent, AnyRecurrent, Tensor]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = AnyRecurrent(options)
    return model, copy.deepcopy(model), torch.randn(options.input_shape, dtype=options.dtype)


VARIANTS = {
    "LSTM": Options(),
    "LSTM on the data itself": Options(linear_before=False),
    "LSTM without biases": Options(bias=False, linear_before=False),
    "LSTM, all of it": Options(
        layers=3, bidirectional=True, dropout=0.4, batch_first=True, state_given=True, uses="yhc"
    ),
    "LSTM with a projection": Options(layers=2, projection=3, bidirectional=True, uses="yhc"),
    "LSTM in float64": Options(dtype=torch.float64, layers=2),
    "LSTM in bfloat16": Options(dtype=torch.bfloat16),
    "LSTM in autocast": Options(autocast=True, layers=2, bidirectional=True),
    "LSTM of one sequence": Options(unbatched=True, batch=1, state_given=True, uses="hc"),
    "LSTM of one step": Options(steps=1),
    "LSTM of one sequence of one feature": Options(batch=1, features=1, hidden=2),
    "LSTM called twice": Options(calls=2),
    "GRU, all of it": Options("GRU", layers=2, bidirectional=True, dropout=0.4, batch_first=True, state_given=True),
    "GRU in autocast": Options("GRU", autocast=True),
    "GRU called twice": Options("GRU", calls=2, uses="yh"),
    "GRU called twice, rows that vectors do not fill": Options("GRU", hidden=19, batch=16, calls=2, batch_first=True),
    "GRU of the last state": Options("GRU", uses="h", bias=False),
    "RNN": Options("RNN", layers=2, dropout=0.2),
    "RNN with relu": Options("RNN", nonlinearity="relu", bidirectional=True, bias=False, uses="yh"),
    "RNN in autocast": Options("RNN", autocast=True, bias=False),
}


@pytest.mark.fast(3)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_option_is_one_graph_with_eagers_bits(name: str) -> None:
    model, eager, x = built(VARIANTS[name])
    expected = step_of(eager, eager, x)
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    found = step_of(model, model, x)
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    assert len(model.graphopt.session.graphs) == 1  # type: ignore[union-attr]


@pytest.mark.fast(1)
@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 12))])
def test_random_options_at_the_minimum(seed: int) -> None:
    model, eager, x = built(random_options(seed))
    try:
        expected = step_of(eager, eager, x)
    except RuntimeError as error:
        pytest.skip(f"eager itself cannot on this processor: {error}")
    with pytest.raises(graphopt.BudgetError) as too_small:
        graphopt.optimize(model, "1B", example_inputs=(x.clone().requires_grad_(not model.options.autocast),))
    graphopt.optimize(model, too_small.value.minimum_bytes)
    found = step_of(model, model, x)
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))


class Called(nn.Module):
    """A module, whose graph Dynamo makes."""

    def __init__(self, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.recurrent(x)[0]
        return y


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_dynamo_leaves_the_call_of_torchs_function(kind: str) -> None:
    """What `recurrent.layers` replaces. Where this fails, Dynamo breaks at the modules, or traces into the call."""
    torch._dynamo.reset()
    met: list[Any] = []

    def backend(module: fx.GraphModule, _inputs: object) -> fx.GraphModule:
        met.append([node.target for node in module.graph.nodes])
        return module

    function = torch.rnn_tanh if kind == "RNN" else getattr(torch, kind.lower())
    model = Called(getattr(nn, kind)(3, 4, 2))
    with settings():
        torch.compile(model, backend=backend)(torch.randn(5, 2, 3))
    assert len(met) == 1 and met[0].count(function) == 1


@pytest.mark.fast(2)
@pytest.mark.parametrize(("kind", "ops"), [("LSTM", "lstm_layer"), ("GRU", "recurrence"), ("RNN", "recurrence")])
def test_a_long_sequence_is_few_ops(kind: str, ops: str) -> None:
    torch._dynamo.reset()
    model = AnyRecurrent(Options(kind, steps=300, layers=2, bidirectional=True, dropout=0.1))
    graphopt.optimize(model, "1GiB", example_inputs=torch.randn(300, 4, 5), cost_model="roofline")
    forward, backward = model.graphopt.graph_modules[0]  # type: ignore[union-attr]
    targets = [str(node.target) for half in (forward, backward) for node in half.graph.nodes]
    assert targets.count(f"graphopt.{ops}.default") == targets.count(f"graphopt.{ops}_backward.default") == 4
    assert len(targets) < 400, "of 1,200 steps"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_where_eager_takes_cudnn_its_layers_are_traced(
    kind: str, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On fake tensors, as there need not be a GPU: one op for all layers, or for each where dropout is between."""
    monkeypatch.setattr(recurrent, "by_cudnn", lambda _input: True)
    module = getattr(nn, kind)(3, 4, 2, bidirectional=True, dropout=dropout)

    def step(x: Tensor, weights: list[Tensor], *state: Tensor) -> tuple[Tensor, ...]:
        given = state if kind == "LSTM" else state[0]
        output, *_ = recurrent._recurrent(
            "rnn_tanh" if kind == "RNN" else kind.lower(),
            recurrent.Known(),
            *(x, given, weights, True, 2, dropout, True, True, False),
        )
        return torch.autograd.grad(output.sum(), [x, *state, *weights])

    with FakeTensorMode():
        leaves = [torch.empty(weight.shape, requires_grad=True) for weight in module._flat_weights]
        states = [torch.empty(4, 2, 4, requires_grad=True) for _ in range(2 if kind == "LSTM" else 1)]
        traced = make_fx(step)(torch.empty(5, 2, 3, requires_grad=True), leaves, *states)
    targets = [str(node.target) for node in traced.graph.nodes]
    count = 2 if dropout else 1
    assert targets.count("graphopt.cudnn_layers.default") == count
    assert targets.count("graphopt.cudnn_layers_backward.default") == count
    gradients = traced.graph.output_node().args[0]
    shapes = [tuple(gradient.meta["val"].shape) for gradient in gradients]
    assert shapes == [(5, 2, 3), *(tuple(tensor.shape) for tensor in (*states, *leaves))]
