"""torch.compile around an optimized model: it keeps its plan, or that is an error; it never trains without a word."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import InternalTorchDynamoError

import graphopt
from graphopt.base.errors import UsageError
from graphopt.device.measure import peak_bytes
from tests.support.residual_blocks import blocks, same_gradients

X = torch.linspace(-1, 1, 16 * 64).reshape(16, 64)


class Own(nn.Module):
    """A class of the user's, around a model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def optimized(model: nn.Module) -> nn.Module:
    return graphopt.optimize(model, "8MiB", cost_model="roofline")


def around_layers_of_torch() -> Callable[[Tensor], Tensor]:
    return torch.compile(optimized(blocks(2)), backend="aot_eager")


def around_a_module_that_has_it() -> Callable[[Tensor], Tensor]:
    return torch.compile(Own(optimized(blocks(2))), backend="aot_eager")


def around_a_function_that_calls_it() -> Callable[[Tensor], Tensor]:
    model = optimized(blocks(2))
    return torch.compile(lambda x: model(x) * 2, backend="aot_eager")


@pytest.mark.parametrize("make", [around_layers_of_torch, around_a_module_that_has_it, around_a_function_that_calls_it])
def test_it_is_said_where_the_plan_would_be_lost(make: Callable[[], Callable[[Tensor], Tensor]]) -> None:
    compiled = make()
    torch._dynamo.reset()  # which forgets Dynamo's callbacks too
    with pytest.raises((UsageError, InternalTorchDynamoError), match=r"drop torch\.compile"):
        compiled(X)
    with torch.no_grad():  # nothing is planned here
        compiled(X)


def test_it_is_said_inside_of_what_graphopt_measures() -> None:
    compiled = around_layers_of_torch()
    with pytest.raises((UsageError, InternalTorchDynamoError), match=r"drop torch\.compile"):
        peak_bytes(lambda: compiled(X).sum().backward(), [X], "cpu")


def test_a_class_of_ones_own_keeps_its_plan() -> None:
    model = Own(blocks(2))
    eager = copy.deepcopy(model)
    optimized(model)
    compiled = torch.compile(model, backend="aot_eager")
    for each in (compiled, eager):
        each(X).sum().backward()
    assert same_gradients(model, eager)
    assert len(model.graphopt.session.graphs) == 1


def test_the_models_own_compile_is_refused_until_it_is_restored() -> None:
    model = optimized(blocks(2))
    with pytest.raises(UsageError, match="restore"):
        model.compile(backend="aot_eager")
    for plain in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.graphopt.restore()):
        plain.compile(backend="aot_eager")
        plain(X).sum().backward()
    assert "compile" not in vars(model)


def test_what_was_compiled_before_is_optimized() -> None:
    inside = blocks(2)
    inside[0].compile(backend="aot_eager")
    for model in (torch.compile(blocks(2), backend="aot_eager"), inside, Own(torch.compile(blocks(2)))):
        optimized(model)(X).sum().backward()
        assert len(model.graphopt.session.graphs) == 1
