"""Blocks of models whose inner values are larger than what goes in, for tests of what runs in pieces of rows."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x)), approximate="tanh"))


class Gated(nn.Module):
    """As Llama's: the activation of one projection times another, behind an RMSNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.gate, self.up = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Experts(nn.Module):
    """Four experts, of which each token is sent to one: as many tokens to each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, width, 4 * width) / width**0.5)
        self.down = nn.Parameter(torch.randn(4, 4 * width, width) / (4 * width) ** 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sent = x.reshape(4, -1, x.shape[-1])
        return x + torch.bmm(F.relu(torch.bmm(sent, self.up)), self.down).reshape(x.shape)


class Attention(nn.Module):
    """Attention whose scores are values of their own, with a causal mask; keys and values may be shared by heads."""

    def __init__(self, width: int, heads: int = 2, groups: int = 2) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.q, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = nn.Linear(width, groups * self.size), nn.Linear(width, groups * self.size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        q = self.q(x).unflatten(-1, (self.heads, self.size)).transpose(1, 2)
        k, v = (f(x).unflatten(-1, (self.groups, self.size)).transpose(1, 2) for f in (self.k, self.v))
        k, v = (each.repeat_interleave(self.heads // self.groups, 1) for each in (k, v))
        scores = q @ k.transpose(-2, -1) / self.size**0.5
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1, dtype=torch.float32).to(q.dtype)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


class Stack(nn.Module):
    """Blocks one behind the other, and the mean of squares of what comes out."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x).square().mean()  # type: ignore[no-any-return]
