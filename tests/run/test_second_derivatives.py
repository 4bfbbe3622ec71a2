"""A gradient of an optimized model can be taken with `create_graph=True`; differentiating it once more is an error."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, functional

import graphopt
from graphopt.base.errors import CaptureError
from tests.support.residual_blocks import blocks

X = torch.linspace(-1, 1, 4 * 64).reshape(4, 64)


class Breaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = blocks(1), blocks(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        torch._dynamo.graph_break()
        return self.b(x)


def first(loss: Tensor, of: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of, create_graph=True)


def penalty(model: nn.Module) -> None:
    gradients = first(model(X).square().sum(), list(model.parameters()))
    torch.stack([gradient.square().sum() for gradient in gradients]).sum().backward()


def with_a_constant_tangent(model: nn.Module) -> None:
    gradients = first(model(X).sum(), list(model.parameters()))
    torch.autograd.grad(gradients[0].sum(), list(model.parameters()), allow_unused=True)


def of_the_input(model: nn.Module) -> None:
    x = X.clone().requires_grad_()
    (first(model(x).sum(), [x])[0].norm() - 1).square().backward()


def of_a_computed_input(model: nn.Module) -> None:
    x = X.clone().requires_grad_()
    computed = x * 2
    torch.autograd.grad(first(model(computed).sum(), [computed])[0].sum(), x, allow_unused=True)


def hessian(model: nn.Module) -> None:
    functional.hessian(lambda x: model(x).sum(), X)


def product_with_hessian(model: nn.Module) -> None:
    functional.hvp(lambda x: model(x).sum(), X, X)


@pytest.mark.fast(3)
@pytest.mark.parametrize("make", [lambda: blocks(2), Breaks])
@pytest.mark.parametrize(
    "loop", [penalty, with_a_constant_tangent, of_the_input, of_a_computed_input, hessian, product_with_hessian]
)
def test_it_is_said_and_never_zero(make: Callable[[], nn.Module], loop: Callable[[nn.Module], None]) -> None:
    model = graphopt.optimize(make(), "4MiB", cost_model="roofline")
    with pytest.raises(CaptureError, match=r"no second ones.*restore"):
        loop(model)
    loop(model.graphopt.restore())


@pytest.mark.fast(1)
@pytest.mark.parametrize("make", [lambda: blocks(2), Breaks])
def test_first_derivatives_are_eagers(make: Callable[[], nn.Module]) -> None:
    model = make()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "4MiB", cost_model="roofline")
    found, expected = (first(each(X).square().sum(), list(each.parameters())) for each in (model, eager))
    assert all(gradient.requires_grad for gradient in found)
    assert all(map(torch.equal, found, expected))
    pairs = [functional.jacobian(lambda x, each=each: each(x).sum(0), X) for each in (model, eager)]
    assert torch.equal(*pairs)


def test_in_forward_mode_the_model_runs_as_it_is_which_is_said_once() -> None:
    model = blocks(1)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "4MiB", cost_model="roofline")

    def tangent(of: nn.Module) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(of(forward_ad.make_dual(X, torch.ones_like(X)))).tangent

    with pytest.warns(UserWarning, match="forward-mode AD, or .* a model runs as it is") as said:
        assert torch.equal(tangent(model), tangent(eager))
        assert torch.equal(tangent(model), tangent(eager))
    assert sum("graphopt" in str(each.message) for each in said) == 1
