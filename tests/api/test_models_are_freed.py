"""Dynamo keeps backends and graphs for good; a model that nobody else holds goes nevertheless."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

import graphopt
from tests.support.residual_blocks import blocks


def optimized() -> tuple[nn.Module, object]:
    model = graphopt.optimize(blocks(1), "64MiB", cost_model="roofline")
    model(torch.randn(8, 64)).sum().backward()
    return model, model.graphopt.session


def in_pieces() -> tuple[nn.Module, object]:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.one(x)
            torch._dynamo.graph_break()
            return self.two(x)

    model = graphopt.optimize(Breaks(), "64MiB", cost_model="roofline")
    model(torch.randn(8, 64)).sum().backward()
    return model, model.graphopt.session


def stepped() -> tuple[nn.Module, object]:
    model = blocks(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = graphopt.train_step(model, nn.functional.mse_loss, optimizer, "64MiB", cost_model="roofline")
    step(torch.randn(8, 64), torch.randn(8, 64))
    return model, step


def planned() -> tuple[nn.Module, object]:
    model = blocks(1)
    return model, graphopt.estimate(model, torch.randn(8, 64), cost_model="roofline")


@pytest.mark.parametrize("make", [optimized, in_pieces, stepped, planned])
def test_a_model_that_nobody_holds_is_freed(make: Callable[[], tuple[nn.Module, object]]) -> None:
    made = make()
    model = weakref.ref(made[0])
    del made
    gc.collect()
    assert model() is None
