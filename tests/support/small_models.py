"""Models of a line or two, whose joint graphs can be read."""

from __future__ import annotations

import torch
from torch import nn


class Linear(nn.Module):
    """A product each way, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight.t() + self.bias).sum()


class Bias(nn.Module):
    """The gradients of `left` and `right` are one tensor, a view of the tangent."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(3))
        self.right = nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.left + self.right).sum()


class Dropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x @ self.weight, 0.5).sum()


class Shapes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * torch.ones_like(x * 3) + torch.full_like(x, 2.0)).sum()


class Writes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[:, 0] = x[:, 1]
        y[:, 1:] = 3.0
        return (y * y).sum()


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)).sum()  # type: ignore[no-any-return]
