"""Tensors for the tests of the kernels, and how far two of them are apart."""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt import kernels

#: What `kernels.use` takes, where it can be run here.
KINDS = ("stock", "own")
SHAPES = ((33, 17), (5,), (4, 3, 3, 3), (0, 4), (), (70, 129))


def random_tensors(seed: int, dtype: torch.dtype = torch.float32, magnitude: float = 1.0) -> list[Tensor]:
    """One normal tensor a shape."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator) * magnitude).to(dtype) for shape in SHAPES]


def clones(tensors: list[Tensor]) -> list[Tensor]:
    """Copies that keep the strides."""
    return [tensor.detach().clone(memory_format=torch.preserve_format) for tensor in tensors]


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists hold the very same bits: -0.0 is not 0.0, and NaN is NaN."""
    return all(
        x.dtype == y.dtype
        and x.contiguous().reshape(-1).view(torch.uint8).equal(y.contiguous().reshape(-1).view(torch.uint8))
        for x, y in zip(a, b, strict=True)
    )


def ulps(a: Tensor, b: Tensor) -> float:
    """The largest difference, in units of the last place of the largest element (small ones cancelled)."""
    if not a.numel() or torch.equal(a, b):
        return 0.0
    difference = (a.detach().double() - b.detach().double()).abs().max() / b.detach().abs().max().double()
    return float(difference.nan_to_num(float("inf"))) / torch.finfo(torch.float32).eps


def same(kind: str, a: list[Tensor], b: list[Tensor]) -> bool:
    """The same bits from stock kernels; from own ones an ulp may be between, in torch's last few elements.

    torch computes what is left of a tensor after whole vectors in other roundings than the rest.
    """
    return same_bits(a, b) if kind == "stock" else max(map(ulps, a, b), default=0.0) <= 1


class Adam:
    """A user's Adam or AdamW, beside the same one with its update done by the op."""

    def __init__(self, params: list[Tensor], decoupled: bool = True, **options: object) -> None:
        self.options = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-8, "amsgrad": False, "maximize": False, **options}
        self.decoupled = decoupled
        self.params = params
        self.averages, self.squares = ([torch.zeros_like(p) for p in params] for _ in range(2))
        self.maxima = [torch.zeros_like(p) for p in params] if self.options["amsgrad"] else []
        self.steps = [torch.zeros(()) for _ in params]
        self.eager_params = [p.requires_grad_() for p in clones(params)]
        kind = torch.optim.AdamW if decoupled else torch.optim.Adam
        self.eager = kind(self.eager_params, betas=(0.9, 0.95), fused=True, **self.options)

    def step(self, gradients: list[Tensor], *scalars: Tensor | None, copies: list[Tensor] = (), **more: object) -> None:  # type: ignore[assignment]
        """One update by the op; `scalars` are its inverse scale, factor and found_inf."""
        state = (self.averages, self.squares, self.maxima, self.steps, list(copies))
        more = {"beta1": 0.9, "beta2": 0.95, "decoupled": self.decoupled, **self.options, **more}
        kernels.adam_(self.params, gradients, *state, *scalars, **more)

    def eager_step(self, gradients: list[Tensor]) -> None:
        """One update by the user's optimizer."""
        for param, gradient in zip(self.eager_params, gradients, strict=True):
            param.grad = gradient.detach().clone(memory_format=torch.contiguous_format)
        self.eager.step()

    def state(self) -> list[Tensor]:
        """Everything that a step may change."""
        return [*self.params, *self.averages, *self.squares, *self.maxima, *self.steps]

    def eager_state(self) -> list[Tensor]:
        """The same of the user's optimizer."""
        states = [self.eager.state[p] for p in self.eager_params]
        names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if self.maxima else []), "step"]
        return [*self.eager_params, *(state[name] for name in names for state in states)]
