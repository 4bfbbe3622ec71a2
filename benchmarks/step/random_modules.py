"""Random small modules, each from a seed: layers with one habit each, in any order."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


class Gated(nn.Module):
    """Halves of one product, one gating the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.both, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.both(x).chunk(2, dim=-1)
        return self.out(a * torch.sigmoid(b))


class Tied(nn.Module):
    """One weight, used there and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x)) @ self.layer.weight


class InPlace(nn.Module):
    """Activations that are written over."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        h[:, 0] = 0.5
        return F.relu_(h)


class Frozen(nn.Module):
    """A layer that is not trained in front of one that is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width).requires_grad_(False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.sin(self.first(x)))


class Attention(nn.Module):
    """Attention over the rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(1, len(x), 3, 4, -1).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(1, 2).reshape(x.shape))


class Broken(nn.Module):
    """Where torch.compile's graph ends."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.one(x))
        torch._dynamo.graph_break()
        return self.two(h)


class Unused(nn.Module):
    """Numbers are drawn and thrown away; a parameter is never used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.idle, self.layer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        F.dropout(x, 0.2)
        return F.dropout(self.layer(x), 0.3)


LAYERS: tuple[Callable[[int], nn.Module], ...] = (
    Residual,
    Gated,
    Tied,
    InPlace,
    Frozen,
    Attention,
    Broken,
    Unused,
    nn.LayerNorm,
    nn.BatchNorm1d,
    lambda _: nn.Dropout(0.1),
    lambda _: nn.GELU(),
    lambda width: nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True)),
)


def random_module(seed: int) -> tuple[nn.Module, int, int]:
    """(module, rows, width): rows x width to rows x width, two to seven layers, some used twice."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    width, rows = choose.choice((16, 32, 64)), choose.choice((64, 128, 256))
    layers = [choose.choice(LAYERS)(width) for _ in range(choose.randint(2, 6))]
    if choose.random() < 0.2:
        layers.append(layers[0])
    return nn.Sequential(nn.Linear(width, width), *layers), rows, width
