"""Several calls of a model before one backward, a backward that comes twice, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import graphopt

X = torch.linspace(-1, 1, 128).reshape(16, 8)


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8))


def dropped() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 8))


def two_calls(model: nn.Module) -> None:
    (model(X) + model(2 * X)).square().sum().backward()


def backward_twice(model: nn.Module) -> None:
    loss = model(X).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()


def grad_then_backward(model: nn.Module) -> None:
    loss = model(X).square().sum()
    torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    loss.backward()


@pytest.mark.fast(5)
@pytest.mark.parametrize("share", [1.0, 0.0])
@pytest.mark.parametrize("way", [two_calls, backward_twice, grad_then_backward])
@pytest.mark.parametrize("build", [normed, dropped])
def test_gradients_are_eagers(build: Callable[[], nn.Module], way: Callable[[nn.Module], None], share: float) -> None:
    """At what eager takes, and at the least there is, where much is recomputed."""
    model, eager = build(), build()
    graphopt.optimize(model, "1GiB", cost_model="roofline", example_inputs=X)
    if share < 1:
        graphopt.optimize(model, model.graphopt.plan.minimum_bytes, cost_model="roofline", example_inputs=X)
    for module in (model, eager):
        torch.manual_seed(1)
        way(module)
    for one, other in zip(model.parameters(), eager.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), eager.buffers(), strict=True))


def test_a_gradient_inside_of_the_forward_is_refused_with_its_reason() -> None:
    class Penalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = dropped()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.clone().requires_grad_()
            y = self.inner(x).sum()
            (gradient,) = torch.autograd.grad(y, x, create_graph=True)
            return y + gradient.square().sum()

    model = graphopt.optimize(Penalized(), "1GiB", cost_model="roofline")
    with pytest.raises(graphopt.CaptureError, match="no second derivatives"):
        model(X)
