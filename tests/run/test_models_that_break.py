"""A model in pieces: what its forward does in Python happens once, and a way that is taken later is planned then."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphopt
from tests.support.residual_blocks import blocks, same_gradients

X, Y = torch.linspace(-1, 1, 64 * 64).reshape(64, 64), torch.linspace(1, 0, 64 * 64).reshape(64, 64)


class Two(nn.Module):
    """Two layers, a counter and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.calls, self.seen = 0, []


class Counts(Two):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        torch._dynamo.graph_break()
        self.calls += 1
        self.seen.append(self.calls)
        return self.b(x) * (1 + 0.01 * len(self.seen))


class DrawsEarly(Two):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x) * random.random())


class DrawsLate(Two):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        share = random.random()
        return self.b(self.a(x)) * share


class DrawsFromNumpy(Two):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x)) * float(np.random.beta(1, 1))


class Branches(nn.Module):
    """A way that depends on data, and a layer of it that is met late."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = blocks(2), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum().item() < 0:
            x = self.blocks[0](x)
        return self.head(self.blocks[1](x))


@pytest.mark.fast(6)
@pytest.mark.parametrize("make", [Counts, DrawsEarly, DrawsLate, DrawsFromNumpy, Branches])
@pytest.mark.parametrize("sign", [1, -1])
def test_python_happens_once(make: Callable[[], nn.Module], sign: int) -> None:
    torch.manual_seed(0)
    model = make()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "8MiB", cost_model="roofline")
    drawn = {}
    for each in (eager, model):
        random.seed(0)
        np.random.seed(0)
        drawn[each] = []
        for step in range(3):
            each.zero_grad()
            loss = F.mse_loss(each((X + 0.1) * sign * (-1) ** step), Y)
            loss.backward()
            drawn[each] += [loss.item(), np.random.rand()]
    assert drawn[model] == drawn[eager]
    assert same_gradients(model, eager)
    assert getattr(model, "seen", []) == getattr(eager, "seen", [])


def test_hooks_come_after_a_backward_hook_had_broken_the_model() -> None:
    model = blocks(2)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "8MiB", cost_model="roofline")
    for each in (model, eager):
        each(X).sum().backward()
        handle = each[1].register_full_backward_hook(lambda *_: None)
        each(X).sum().backward()
        handle.remove()
        each(X).sum().backward()
        each[0].register_forward_hook(lambda _module, _given, out: out * 2)
        each(X).sum().backward()
    assert same_gradients(model, eager)


def test_transforms_of_torch_func_run_it_as_it_is() -> None:
    model = blocks(2)
    expected = torch.func.grad(lambda x: model(x).sum())(X)
    graphopt.optimize(model, "8MiB", cost_model="roofline")
    with pytest.warns(UserWarning, match="transform of torch.func"):
        found = torch.func.grad(lambda x: model(x).sum())(X)
    assert torch.equal(found, expected)
    assert torch.func.vmap(model)(X[:4, None]).shape == (4, 1, 64)


def test_a_model_of_one_graph_that_breaks_later_counts_once() -> None:
    """Nothing of a forward that begins anew stays, even where it came to no graph before its first break."""

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.count = nn.Linear(8, 8), nn.Linear(8, 8), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += 1
            return self.second(self.first(x)) / self.count

    torch.manual_seed(0)
    model, x = Counts(), torch.randn(4, 8)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1MiB")
    for step in range(4):
        for each in (model, eager):
            if step == 0:
                each.second.weight.register_hook(lambda gradient: gradient * 2)
            if step == 2:
                each.first.register_full_backward_hook(lambda *_: None)
            each(x.clone().requires_grad_()).square().mean().backward()
        assert model.count == eager.count == step + 1
        pairs = zip(model.parameters(), eager.parameters(), strict=True)
        assert all(torch.equal(one.grad, other.grad) for one, other in pairs)
