"""Models of a few hundred parameters, each with one habit, that return their loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.loops import Batch


def seeded(build: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    """`build(...)` with the same weights every time, the caller's generator left alone."""

    def builder() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(*args, **kwargs)

    return builder


def vectors(steps: int, rows: int = 8, width: int = 6, dtype: torch.dtype = torch.float32) -> list[Batch]:
    """Batches of (inputs, targets), both rows × width."""
    generator = torch.Generator().manual_seed(7)
    drawn = torch.randn(steps, 2, rows, width, generator=generator).to(dtype)
    return [((x, y), {}) for x, y in drawn]


class Perceptron(nn.Module):
    """Two layers and a square loss."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(self.predicted(x), y)

    def predicted(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x)))


class WithUnused(Perceptron):
    """A layer that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)


class Optional(Perceptron):
    """A layer for micro-batches of at least `least` rows only, or when asked for."""

    def __init__(self, least: int = 1_000_000) -> None:
        super().__init__()
        self.extra = nn.Linear(6, 6)
        self.least = least

    def forward(self, x: Tensor, y: Tensor, extra: bool = False) -> Tensor:
        if extra or len(x) >= self.least:
            x = x + self.extra(x)
        return super().forward(x, y)


class NoGradient(torch.autograd.Function):
    """A product whose gradient by the weight its author left out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        return grad * weight, None


class LeftOut(Perceptron):
    """Uses a parameter by which nothing is differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def predicted(self, x: Tensor) -> Tensor:
        return NoGradient.apply(super().predicted(x), self.weight)  # type: ignore[no-any-return,no-untyped-call]


class Tied(nn.Module):
    """Tokens in, the same weights out."""

    def __init__(self, *, sparse: bool = False, tied: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6, sparse=sparse)
        self.head = nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        logits = self.head(torch.tanh(self.embedding(ids)))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def sentences(steps: int, rows: int = 6, length: int = 5) -> list[Batch]:
    """Batches of (ids, labels), the later rows with ever more labels that are ignored."""
    generator = torch.Generator().manual_seed(7)
    batches: list[Batch] = []
    for drawn in torch.randint(0, 11, (steps, 2, rows, length), generator=generator):
        ids, labels = drawn
        for row in range(rows):
            labels[row, length - row % length :] = -100
        batches.append(((ids, labels), {}))
    return batches


class Turned(nn.Module):
    """Weights laid out in memory as `layout` says, read as they are and turned."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        weight = torch.randn(6, 6)
        given = {"transposed": weight.t(), "strided": torch.randn(6, 12)[:, ::2], "contiguous": weight}[layout]
        self.weight = nn.Parameter(given)
        self.scale = nn.Parameter(torch.randn(2, 3, 1).transpose(0, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        turned = torch.tanh(x @ self.weight) @ self.weight.t() + x * self.scale.reshape(6)
        return F.mse_loss(turned, y)


class Convolutions(nn.Module):
    """BatchNorm between two convolutions, in channels-last order."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).square().mean()


class Noisy(Perceptron):
    """Dropout and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(12), nn.Dropout(0.3)

    def predicted(self, x: Tensor) -> Tensor:
        return self.second(self.drop(self.norm(F.gelu(self.first(x)))))
