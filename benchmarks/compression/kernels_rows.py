"""The gradients that compression kernels are timed on, and one piece of their work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

BUCKETS, MATRICES, WIDTH = 4, 6, 1024


@dataclass(frozen=True)
class Comparison:
    """One piece of work on all buckets: by our ops, and by each way to write it in torch's."""

    work: str
    ours: Callable[[], object]
    plain: Mapping[str, Callable[[], object]]


@dataclass
class Gradients:
    """Flat buckets of 25 MiB and the parameters' gradients, views of them; residuals likewise."""

    flat: list[Tensor] = field(init=False)
    flat_residuals: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        size = MATRICES * WIDTH * WIDTH
        self.flat = [torch.randn(size) * 1e-3 for _ in range(BUCKETS)]
        self.flat_residuals = [torch.randn(size) * 1e-5 for _ in range(BUCKETS)]

    @property
    def buckets(self) -> list[list[Tensor]]:
        return [list(bucket.view(MATRICES, WIDTH, WIDTH)) for bucket in self.flat]

    @property
    def residuals(self) -> list[list[Tensor]]:
        return [list(bucket.view(MATRICES, WIDTH, WIDTH)) for bucket in self.flat_residuals]
