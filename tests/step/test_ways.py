"""A model that goes one way or another: each way's parameters have their own state, though the ways have one code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphopt

X, Y = torch.randn(8, 64), torch.randn(8, 64)


class Ways(nn.Module):
    """Two layers alike, of which one runs."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))
        self.way = 0

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.ways[self.way](x)
        return found


Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cut": {"accumulate": 2},
    "in the backward": {"update_in_backward": True},
    "in a file": {"offload_optimizer": "file"},
}


@pytest.mark.parametrize("made_by", OPTIMIZERS)
@pytest.mark.parametrize("how", OPTIONS)
def test_each_way_is_updated_with_its_own_state(made_by: str, how: str) -> None:
    make, models = OPTIMIZERS[made_by], []
    for is_ours in (True, False):
        torch.manual_seed(0)
        model = Ways()
        optimizer = make(model.parameters())
        step = graphopt.train_step(model, nn.functional.mse_loss, optimizer, cost_model="roofline", **OPTIONS[how])
        for way in (0, 1, 1, 0, 1):
            model.way = way
            if is_ours:
                step(X, Y)
                continue
            optimizer.zero_grad()
            nn.functional.mse_loss(model(X), Y).backward()
            optimizer.step()
        assert len(optimizer.state) == 4
        models.append(model)
    for mine, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_each_way_is_planned_with_its_own_state() -> None:
    """The first step of a way makes its state, which no other's plan has."""
    torch.manual_seed(0)
    model = Ways()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    step = graphopt.train_step(model, nn.functional.mse_loss, optimizer, on_excess="raise")
    for way in (0, 1, 0, 1):
        model.way = way
        step(X, Y)
        assert step.history[-1].measured_bytes <= step.plan.peak_bytes
