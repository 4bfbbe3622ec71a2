"""A training step in float64: what is clipped is clipped in float64, as eager clips it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import graphopt
from graphopt import ClipNorm, kernels

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["stock", "auto"])
@pytest.mark.parametrize("norm_type", [2.0, float("inf")])
def test_norm_factor_and_update_have_eagers_bits(optimizer: str, kind: str, norm_type: float) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    eager = copy.deepcopy(model)
    make = OPTIMIZERS[optimizer]
    mine, theirs = make(list(model.parameters())), make(list(eager.parameters()))
    x, y = torch.randn(5, 6).double(), torch.randn(5, 2).double()
    with kernels.use(kind):
        step = graphopt.train_step(model, nn.functional.mse_loss, mine, "1GiB", clip=ClipNorm(0.01, norm_type))
        for _ in range(3):
            result = step(x, y)
            theirs.zero_grad()
            nn.functional.mse_loss(eager(x), y).backward()
            norm = nn.utils.clip_grad_norm_(eager.parameters(), 0.01, norm_type)
            theirs.step()
            assert result.grad_norm is not None and result.grad_norm.dtype == torch.float64
            assert torch.equal(result.grad_norm, norm)
    assert all(map(torch.equal, model.parameters(), eager.parameters()))


def test_a_group_in_float64_beside_one_in_float32() -> None:
    model = nn.ModuleList([nn.Linear(4, 4).double(), nn.Linear(4, 4)])
    eager = copy.deepcopy(model)
    x = torch.randn(3, 4)

    class Both(nn.Module):
        def __init__(self, parts: nn.ModuleList) -> None:
            super().__init__()
            self.parts = parts

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts[1](self.parts[0](x.double()).float()).square().mean()  # type: ignore[no-any-return]

    step = graphopt.train_step(
        Both(model), None, torch.optim.SGD(model.parameters(), lr=0.1, fused=True), "1GiB", clip=ClipNorm(0.01)
    )
    result = step(x)
    Both(eager)(x).backward()
    norm = nn.utils.clip_grad_norm_(eager.parameters(), 0.01)
    torch.optim.SGD(eager.parameters(), lr=0.1, fused=True).step()
    assert result.grad_norm is not None and result.grad_norm.dtype == norm.dtype == torch.float64
    torch.testing.assert_close(result.grad_norm, norm, rtol=1e-7, atol=0)
    for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7 if mine.dtype == torch.float64 else 1e-6, atol=0)
