"""Packed sequences: one graph, with eager's bits; what Dynamo does by itself, and where a graph must end."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import graphopt
from graphopt.capture.dynamo import settings
from graphopt.capture.recurrent import layers as recurrent
from tests.support.packed_models import (
    MODELS,
    AnyPacked,
    Generator,
    Learned,
    Tagger,
    ids_of,
    lengths_of,
    masked_ids,
    tagged_batch,
)
from tests.support.recurrent_models import random_options, step_of


def check_step(model: nn.Module, eager: nn.Module, batch: Sequence[Any]) -> None:
    """A step of both has the same bits."""
    expected, found = step_of(eager, eager, batch), step_of(model, model, batch)
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", MODELS)
def test_it_is_one_graph_for_each_number_of_rows_with_eagers_bits(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    make, data = MODELS[name]
    model = make()
    eager, batches = copy.deepcopy(model), [data(), data()]
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    for batch in (batches[0], batches[0], batches[1]):
        check_step(model, eager, batch)
    report = model.graphopt  # type: ignore[union-attr]
    assert 1 <= len(report.session.graphs) <= 2 and not report.session.breaks


@pytest.mark.fast(3)
@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_a_tagger_is_one_graph(kind: str, sort: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, batch = Tagger(kind, sort=sort), tagged_batch()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    check_step(model, eager, batch)
    check_step(model, eager, batch)
    (graph,) = model.graphopt.session.graphs  # type: ignore[union-attr]
    assert graph.is_whole_model


@pytest.mark.fast(2)
@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 14))])
def test_random_options_at_the_minimum(seed: int) -> None:
    torch._dynamo.reset()
    torch.manual_seed(seed)
    options = replace(random_options(seed), unbatched=False)
    lengths = lengths_of(options.batch, options.steps)
    model, x = AnyPacked(options, lengths), torch.randn(options.input_shape, dtype=options.dtype)
    eager = copy.deepcopy(model)
    with pytest.raises(graphopt.BudgetError) as too_small:
        graphopt.optimize(model, "1B", example_inputs=x)
    graphopt.optimize(model, too_small.value.minimum_bytes)
    check_step(model, eager, (x,))
    assert len(model.graphopt.session.graphs) == 1  # type: ignore[union-attr]


def test_other_lengths_of_as_many_rows_share_a_graph() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Generator()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    for lengths, graphs in (([9, 5, 5], 1), ([5, 9, 5], 1), ([3, 7, 9], 1), ([9, 5, 6], 2), ([8, 6, 5], 3)):
        check_step(model, eager, (ids_of(3), torch.tensor(lengths)))
        assert len(model.graphopt.session.graphs) == graphs  # type: ignore[union-attr]


def test_a_mask_is_looked_at_in_each_call() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = MODELS["lengths of a mask"][0]()
    eager, ids = copy.deepcopy(model), masked_ids()
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    check_step(model, eager, (ids,))
    ids[(ids != 0).sum(1).argmin(), 8] = 1
    check_step(model, eager, (ids,))
    assert len(model.graphopt.session.graphs) == 2  # type: ignore[union-attr]


@pytest.mark.fast(1)
@pytest.mark.parametrize("lengths", [[3, 5, 2], [3, 2, 0], [3, 2, -1]])
def test_lengths_that_eager_refuses_are_refused(lengths: list[int]) -> None:
    torch._dynamo.reset()
    model = Tagger(sort=True)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    ids = torch.ones(3, 5, dtype=torch.int64)
    model(ids, torch.tensor([3, 2, 5]), ids)
    messages = []
    for run in (model, eager):
        run.sort = lengths[1] < lengths[0]
        with pytest.raises(RuntimeError) as refused:
            run(ids, torch.tensor(lengths), ids)
        messages.append(str(refused.value))
    assert messages[0] == messages[1]


def test_lengths_that_no_input_tells_break_the_graph_at_the_packing_alone() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Learned("GRU", bidirectional=True)
    eager, batch = copy.deepcopy(model), (ids_of(),)
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    check_step(model, eager, batch)
    for each in (model, eager):  # which is planned for too, and met anew
        each(*batch).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), eager.parameters(), strict=True))  # type: ignore[arg-type]
    (met,) = model.graphopt.session.breaks  # type: ignore[union-attr]
    assert "pack_padded_sequence: how long the sequences are" in met.reason and "packed_models.py" in met.source
    targets = [str(node.target) for each in model.graphopt.graph_modules for node in each[0].graph.nodes]  # type: ignore[union-attr]
    assert targets.count("graphopt.recurrence.default") == 2


class Called(nn.Module):
    """A call that Dynamo captures; what of its lengths it can know depends on how they are made."""

    def __init__(self, lengths: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.lengths, self.recurrent = lengths, nn.RNN(4, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, self.lengths(lengths))
        return self.recurrent(packed)[0].data.sum()  # type: ignore[no-any-return]


def graphs_of(run: Callable[[], object]) -> list[fx.GraphModule]:
    met: list[fx.GraphModule] = []

    def backend(module: fx.GraphModule, _inputs: object) -> fx.GraphModule:
        met.append(module)
        return module

    torch._dynamo.reset()
    torch.compile(run, backend=backend)()
    return met


@pytest.mark.parametrize(
    ("lengths", "one"),
    [
        (lambda n: n, True),
        (lambda n: n.clamp(max=4) + 1, True),
        (lambda n: n.add_(1), False),
        (lambda n: n + torch.randint(1, 2, (3,)), False),
        (lambda n: n.float().round().long(), False),
        (lambda n: n.numpy(), False),
    ],
)
def test_lengths_are_read_where_nothing_but_they_themselves_is_needed(lengths: Any, one: bool) -> None:
    model, x = Called(lengths), torch.randn(6, 3, 4)
    with settings():
        assert (len(graphs_of(lambda: model(x, torch.tensor([4, 2, 1])))) == 1) == one


def test_lengths_that_were_written_are_not_read() -> None:
    """Dynamo's inputs are as they were before the call."""

    def written(lengths: Tensor) -> Tensor:
        lengths[0] = 5
        return lengths

    model, x = Called(written), torch.randn(6, 3, 4)
    with settings():
        assert len(graphs_of(lambda: model(x, torch.tensor([4, 2, 1])))) > 1


def test_dynamo_breaks_the_graph_at_packing_by_itself() -> None:
    """Why `capture.recurrent.packed` is there. Where this fails, Dynamo has learned it, or asks for it elsewhere."""
    model, x = Called(lambda n: n), torch.randn(6, 3, 4)
    with torch._dynamo.config.patch(allow_rnn=True):
        found = graphs_of(lambda: model(x, torch.tensor([4, 2, 1])))
    assert not any(node.target is torch.rnn_tanh for module in found for node in module.graph.nodes)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_where_eager_takes_cudnn_its_layers_are_traced(
    kind: str, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On fake tensors, as there need not be a GPU."""
    monkeypatch.setattr(recurrent, "by_cudnn", lambda _input: True)
    module = getattr(nn, kind)(3, 4, 2, bidirectional=True, dropout=dropout)

    def step(x: Tensor, batch_sizes: Tensor, weights: list[Tensor], *state: Tensor) -> tuple[Tensor, ...]:
        given = state if kind == "LSTM" else state[0]
        output, *_ = recurrent._recurrent(
            "rnn_tanh" if kind == "RNN" else kind.lower(),
            recurrent.Known(),
            *(x, batch_sizes, given, weights, True, 2, dropout, True, True),
        )
        return torch.autograd.grad(output.sum(), [x, *state, *weights])

    with FakeTensorMode():
        leaves = [torch.empty(weight.shape, requires_grad=True) for weight in module._flat_weights]
        states = [torch.empty(4, 2, 4, requires_grad=True) for _ in range(2 if kind == "LSTM" else 1)]
        x, batch_sizes = torch.empty(7, 3, requires_grad=True), torch.empty(5, dtype=torch.int64)
        traced = make_fx(step)(x, batch_sizes, leaves, *states)
    targets = [str(node.target) for node in traced.graph.nodes]
    count = 2 if dropout else 1
    assert targets.count("graphopt.cudnn_layers.default") == count
    assert targets.count("graphopt.cudnn_layers_backward.default") == count
    gradients = traced.graph.output_node().args[0]
    shapes = [tuple(gradient.meta["val"].shape) for gradient in gradients]
    assert shapes == [(7, 3), *(tuple(tensor.shape) for tensor in (*states, *leaves))]
