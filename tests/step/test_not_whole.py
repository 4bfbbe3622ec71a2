"""A model that reads numbers out of tensors is no step of one graph: told plainly, with the line and the way out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphopt


class Reading(nn.Module):
    """A layer whose forward goes on with what a tensor says."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8, momentum=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Branches(Reading):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layer(x)
        return h * 2 if h.sum().item() > 0 else h


class Drops(Reading):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.layer(x), x.abs().max().item() / 100)


class Scales(Reading):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * x.abs().max().item()


class Cuts(Reading):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[: int((x > 0).sum()) % 4 + 1].sum() + self.layer(x)


class Selects(Reading):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x[x[:, 0] > 0]).sum() + self.layer(x)


class Averages(Reading):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(x))


@pytest.mark.parametrize("kind", [Branches, Drops, Scales, Cuts, Selects, Averages])
def test_the_line_and_the_way_out_are_named(kind: type[Reading]) -> None:
    torch.manual_seed(0)
    model, x = kind(), torch.randn(16, 8)
    step = graphopt.train_step(model, nn.functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1), "1MiB")
    with pytest.raises(graphopt.CaptureError) as caught:
        step(x, x)
    said = str(caught.value)
    assert "which is known only when the step runs" in said and "graphopt.optimize()" in said
    assert ("momentum=None" in said and "batchnorm.py:" in said) if kind is Averages else "test_not_whole.py:" in said
    assert "guard" not in said.lower() and len(said.splitlines()) == 1
    graphopt.optimize(model, "1MiB")  # the way out
    nn.functional.mse_loss(model(x), x).backward()
    assert model.graphopt.history[-1].measured_bytes < 2**20
