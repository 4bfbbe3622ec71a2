"""Sparse tensors and subclasses, as inputs and parameters: captured, captured in pieces, or refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import graphopt
from graphopt.base.errors import CaptureError
from tests.support.residual_blocks import same_gradients

X = torch.linspace(-1, 1, 64).reshape(8, 8)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    COO, CSR = X.relu().to_sparse(), X.relu().to_sparse_csr()


class Marked(Tensor):
    """A subclass with nothing of its own."""


class Model(nn.Module):
    def __init__(self, read: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.read = nn.Linear(8, 8), read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.a, x).square().sum()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.linear(x))


class Neighbours(nn.Module):
    """Layers between which a sparse matrix mixes rows."""

    def __init__(self, buffer: Tensor | None = None) -> None:
        super().__init__()
        self.one, self.two = Layer(), Layer()
        self.register_buffer("adjacent", buffer)

    def forward(self, x: Tensor, adjacent: Tensor | None = None) -> Tensor:
        adjacent = self.adjacent if adjacent is None else adjacent
        return self.two(adjacent @ self.one(x)).square().sum()


class OfSparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(X.relu().to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.w, x).square().sum()


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


def dense_first(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.to_dense())


def product(layer: nn.Module, x: Tensor) -> Tensor:
    return x @ layer.weight  # type: ignore[operator]


def nested(layout: torch.layout) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(2, 8)], layout=layout)


REFUSED = [
    (linear, COO, "input 1 is sparse .*dense"),
    (dense_first, COO, "input 1 is sparse .*dense"),
    (product, CSR, "input 1 is sparse .*dense"),
    (linear, X.as_subclass(Marked), "input 1 is a Marked, a subclass of torch.Tensor .*as_subclass"),
    (linear, nested(torch.jagged), "input 1 is a nested tensor.*pad"),
    (linear, nested(torch.strided), "input 1 is a nested tensor.*pad"),
    (dense_first, X.to_mkldnn(), "input 1 is in oneDNN's own layout.*dense"),
    (linear, torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), "input 1 is quantized"),
]


@pytest.mark.parametrize(("read", "x", "said"), REFUSED)
@pytest.mark.parametrize("example", [False, True])
def test_an_input_is_named_with_the_way_out(
    read: Callable[[nn.Module, Tensor], Tensor], x: Tensor, said: str, example: bool
) -> None:
    with pytest.raises(CaptureError, match=said):
        if example:
            graphopt.optimize(Model(read), "1MiB", cost_model="roofline", example_inputs=x)
        else:
            graphopt.optimize(Model(read), "1MiB", cost_model="roofline")(x)


def test_a_parameter_is_named() -> None:
    with pytest.raises(CaptureError, match="the parameter 'w' is sparse"):
        graphopt.optimize(OfSparse(), "1MiB", cost_model="roofline")(X)
    model = OfSparse()
    step = graphopt.train_step(model, None, torch.optim.SGD(model.parameters(), lr=0.1), cost_model="roofline")
    with pytest.raises(CaptureError, match="the parameter 'w' is sparse"):
        step(X)


@pytest.mark.parametrize(("x", "said"), [(COO, "sparse"), (nested(torch.strided), "a nested tensor")])
def test_a_training_step_says_it_too(x: Tensor, said: str) -> None:
    model = Model(linear)
    step = graphopt.train_step(model, None, torch.optim.SGD(model.parameters(), lr=0.1), cost_model="roofline")
    with pytest.raises(CaptureError, match=said):
        step(x)


@pytest.mark.parametrize("layer", [nn.Embedding(10, 8, sparse=True), nn.EmbeddingBag(10, 8, sparse=True)])
def test_sparse_gradients_are_named(layer: nn.Module) -> None:
    model = nn.Sequential(layer, nn.Linear(8, 8))
    graphopt.optimize(model, "1MiB", cost_model="roofline")
    with pytest.raises(CaptureError, match=r"makes a sparse tensor.*sparse=False"):
        model(torch.randint(0, 10, (5, 3)))


@pytest.mark.parametrize("adjacent", [COO, CSR])
@pytest.mark.parametrize("is_buffer", [False, True])
def test_what_does_not_read_a_sparse_tensor_is_planned(adjacent: Tensor, is_buffer: bool) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Neighbours(adjacent if is_buffer else None))
    (model, eager), given = models, () if is_buffer else (adjacent,)
    graphopt.optimize(model, "1MiB", cost_model="roofline")
    for _ in range(2):
        for each in (model, eager):
            each.zero_grad()
            each(X, *given).backward()
        assert same_gradients(model, eager)
    assert len(model.graphopt.session.graphs) == 2


class OfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(TwoTensor(X, X * 2))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w).square().sum()


def test_subclasses_that_are_traced_into_are_planned() -> None:
    model = graphopt.optimize(OfTwo(), "1MiB", cost_model="roofline")
    eager = OfTwo()
    for _ in range(2):
        for each in (model, eager):
            each(X).backward()
        assert torch.equal(model.w.grad.a, eager.w.grad.a)
        assert torch.equal(model.w.grad.b, eager.w.grad.b)


def test_plain_parameters_with_gradients_of_a_subclass_are_refused() -> None:
    model = graphopt.optimize(Model(linear), "1MiB", cost_model="roofline")
    with pytest.raises(CaptureError, match="plain tensors"):
        model(TwoTensor(X, X))


def test_a_nested_tensor_made_in_the_forward_is_named_with_its_line() -> None:
    def nest(layer: nn.Module, x: Tensor) -> Tensor:
        nested = torch.nested.nested_tensor([x[:2], x[2:]], layout=torch.jagged)
        return layer(nested).values()  # type: ignore[no-any-return]

    with pytest.raises(CaptureError, match=rf"a nested tensor is made at {__file__}:\d+ in nest.*pad it"):
        graphopt.optimize(Model(nest), "1GiB", example_inputs=X, cost_model="roofline")
