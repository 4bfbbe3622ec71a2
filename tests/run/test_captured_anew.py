"""What is captured anew in the middle of training: a piece of a broken model, or the whole for another shape."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import graphopt
from graphopt.device.measure import peak_bytes
from tests.support.residual_blocks import same_gradients


def blocks(count: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(count)))


class Item(nn.Module):
    """Its second half is captured for each value of a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = blocks(4), blocks(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        self.norm = x.detach().norm().item()
        return self.b(x).square().mean()


def step(model: nn.Module, x: torch.Tensor) -> None:
    model.zero_grad()
    model(x).backward()


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)


@pytest.mark.fast(1)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_piece_is_planned_beside_the_others(frozen: bool) -> None:
    torch.manual_seed(0)
    model, x = Item(), torch.randn(512, 64)
    eager = copy.deepcopy(model)
    resident = [*model.parameters(), x]
    device = torch.device("cpu")
    probe = graphopt.optimize(copy.deepcopy(model), "1GiB", example_inputs=x)
    least, most = probe.graphopt.plan.minimum_bytes, probe.graphopt.plan.eager_peak_bytes
    budget = (3 * least + most) // 4
    graphopt.optimize(model, budget)
    step(model, x)
    for module in (model, eager):
        change(module)
        if frozen:
            module.b[0].requires_grad_(False)
    model.zero_grad()
    assert peak_bytes(lambda: step(model, x), resident, device) <= budget
    model.zero_grad()
    assert peak_bytes(lambda: step(model, x), resident, device) <= budget
    assert model.graphopt.plan.peak_bytes <= budget
    step(eager, x)
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), gradients(eager), strict=True))


def test_each_shape_keeps_its_plan_and_the_one_in_force_is_shown() -> None:
    torch.manual_seed(0)
    model = graphopt.optimize(blocks(2), "64MiB", cost_model="roofline")
    peaks = []
    for rows in (64, 128, 64):
        model(torch.randn(rows, 64)).sum().backward()
        peaks.append(model.graphopt.plan.peak_bytes)
        model.zero_grad()
    assert peaks[0] == peaks[2] < peaks[1]
    assert len(model.graphopt.session.graphs) == 2


class Idle(nn.Module):
    """Its first pieces compute what nobody uses, or what needs no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        h = self.a(h)
        nn.functional.dropout(h, 0.2)
        torch._dynamo.graph_break()
        mean = h.detach().mean()
        torch._dynamo.graph_break()
        return nn.functional.dropout(h - mean, 0.5).square().mean()


@pytest.mark.parametrize("example", [False, True])
def test_pieces_that_need_no_gradient_run_as_they_are(example: bool) -> None:
    torch.manual_seed(0)
    model, x = Idle(), torch.randn(5, 4)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1MiB", cost_model="roofline", example_inputs=x if example else None)
    for module in (model, eager):
        torch.manual_seed(1)
        step(module, x)
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), gradients(eager), strict=True))


@pytest.mark.parametrize(
    "work",
    [
        lambda model, x: model.layer(x).square().sum() * math.gcd(model.n, 4) * math.factorial(model.n),
        lambda model, x: (model.layer(x) * complex(model.n, 1).real).sum(),
    ],
    ids=["gcd", "complex"],
)
def test_what_a_forward_does_before_a_function_that_is_captured_anew_happens_once(
    work: Callable[[nn.Module, torch.Tensor], torch.Tensor],
) -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.n = nn.Linear(8, 8), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.n += 1
            return work(self, x)

    model, x = Counted(), torch.randn(4, 8)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    for _ in range(6):
        for each in (model, eager):
            each.zero_grad()
            each.loss = each(x)
            each.loss.backward()
        assert model.n == eager.n and torch.equal(model.loss, eager.loss) and same_gradients(model, eager)
