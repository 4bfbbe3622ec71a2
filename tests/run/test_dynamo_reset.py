"""`torch._dynamo.reset()` in between: what was captured is captured anew, inside the same budget."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.device.measure import peak_bytes
from tests.support.residual_blocks import blocks, same_gradients


class Breaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = blocks(2), blocks(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        torch._dynamo.graph_break()
        return self.b(x)


@pytest.mark.fast(1)
@pytest.mark.parametrize("make", [lambda: blocks(4), Breaks])
@pytest.mark.parametrize("example", [False, True])
def test_training_goes_on_inside_the_budget(make: Callable[[], nn.Module], example: bool) -> None:
    model, x = make(), torch.linspace(-1, 1, 256 * 64).reshape(256, 64)
    eager, resident = copy.deepcopy(model), [*model.parameters(), x]
    probe = graphopt.optimize(copy.deepcopy(model), "1GiB", example_inputs=x).graphopt.plan
    budget = (probe.minimum_bytes + probe.eager_peak_bytes) // 2
    graphopt.optimize(model, budget, example_inputs=x if example else None)

    def step() -> None:
        model.zero_grad()
        model(x).square().sum().backward()

    eager(x).square().sum().backward()
    for number in range(4):
        if number != 2:
            torch._dynamo.reset()
        assert peak_bytes(step, resident, torch.device("cpu")) <= budget
        assert same_gradients(model, eager)
        assert model.graphopt.plan.peak_bytes <= budget < probe.eager_peak_bytes


@pytest.mark.parametrize("make", [lambda: blocks(4), Breaks])
def test_between_a_forward_and_its_backward(make: Callable[[], nn.Module]) -> None:
    model, x = make(), torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "8MiB", cost_model="roofline")
    loss = model(x).sum()
    torch._dynamo.reset()
    loss.backward()
    eager(x).sum().backward()
    assert same_gradients(model, eager)


def test_between_training_steps() -> None:
    model, x = blocks(2), torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
    eager = copy.deepcopy(model)
    ours, theirs = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, eager))
    step = graphopt.train_step(model, nn.functional.mse_loss, ours, cost_model="roofline")
    for rows in (64, 64, 32):
        torch._dynamo.reset()
        step(x[:rows], x[:rows])
        theirs.zero_grad()
        nn.functional.mse_loss(eager(x[:rows]), x[:rows]).backward()
        theirs.step()
        assert all(map(torch.equal, model.parameters(), eager.parameters()))
