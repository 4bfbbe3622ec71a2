"""A method that writes in place, whose result nobody reads, stays where numbers are made constants of a plan."""

import copy

import pytest
import torch
from torch import nn

import graphopt


class Writes(nn.Module):
    def __init__(self, way: str):
        super().__init__()
        self.way = way
        self.layer = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layer(x).sin()
        if self.way == "column":
            h[..., 0].mul_(0.5)
        elif self.way == "rows":
            h[: x.shape[0] // 2].neg_()
        else:
            h.view(-1, 8).add_(1)
        h[:, :8] += 1  # PyTorch traces what this writes with constant sizes alone
        return h


@pytest.mark.parametrize("way", ["column", "rows", "all"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_a_method_that_writes_is_kept_at_every_shape(way: str, dynamic: bool | None) -> None:
    torch.manual_seed(0)
    eager = Writes(way)
    model = graphopt.optimize(copy.deepcopy(eager), "1GiB", dynamic=dynamic)
    for rows in (96, 64, 33, 64):
        x = torch.randn(rows, 8)
        loss, expected = model(x).square().mean(), eager(x).square().mean()
        loss.backward()
        expected.backward()
        assert torch.equal(loss, expected)
        for ours, theirs in zip(model.parameters(), eager.parameters(), strict=True):
            assert ours.grad is not None
            assert theirs.grad is not None
            assert torch.equal(ours.grad, theirs.grad)
        model.zero_grad()
        eager.zero_grad()
