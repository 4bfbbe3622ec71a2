"""The ways to compress gradients between processes: what `compress=` takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from graphopt.base.errors import UsageError
from graphopt.device.dtypes import HALF


@dataclass(frozen=True)
class HalfCast:
    """Gradients travel as fp16 or bf16 and are summed in float32 where the backend cannot sum them."""

    dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        if self.dtype not in HALF:
            raise UsageError(f"HalfCast: dtype must be torch.float16 or torch.bfloat16, got {self.dtype}")


@dataclass(frozen=True)
class EightBit:
    """Linear quantization to 8 bits, a scale for each block, what is rounded off is kept for the next step."""


@dataclass(frozen=True)
class QSGD:
    """Stochastic quantization, unbiased, so that nothing is kept (Alistarh et al., NeurIPS 2017, section 3).

    `bits` for an element, sign included: 8, 4 or 2. Ranks draw from `seed` differently.
    """

    bits: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise UsageError(f"QSGD: bits must be 2, 4 or 8, got {self.bits!r}")


@dataclass(frozen=True)
class TopK:
    """Only the largest `ratio` of each parameter's gradient is sent; the rest is kept for the next steps."""

    ratio: float = 0.01

    def __post_init__(self) -> None:
        _check_ratio("TopK", self.ratio)


@dataclass(frozen=True)
class DGC:
    """Deep Gradient Compression (Lin et al., ICLR 2018, sections 3.1-3.3): TopK with the momentum on each rank.

    Replaces the optimizer's momentum, which must be 0; parameters too small to be compressed travel whole, with
    theirs. `max_norm` clips each rank's gradient to
    max_norm / sqrt(ranks) before the momentum. In the first `warmup_steps` the ratio falls from 25 %
    to `ratio`, exponentially, in four stages.
    """

    ratio: float = 0.001
    momentum: float = 0.9
    max_norm: float | None = None
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _check_ratio("DGC", self.ratio)
        if not 0 <= self.momentum < 1:
            raise UsageError(f"DGC: momentum must be in [0, 1), got {self.momentum!r}")
        if self.max_norm is not None and not self.max_norm > 0:
            raise UsageError(f"DGC: max_norm must be a positive number, got {self.max_norm!r}")
        if self.warmup_steps < 0:
            raise UsageError(f"DGC: warmup_steps must be at least 0, got {self.warmup_steps!r}")

    def ratio_at(self, step: int) -> float:
        """The ratio of a step, counted from 0."""
        if step >= self.warmup_steps or self.ratio >= 0.25:
            return self.ratio
        stage = 4 * step // self.warmup_steps
        return float(0.25 * (self.ratio / 0.25) ** (stage / 4))


@dataclass(frozen=True)
class WholeMomentum:
    """What DGC does to parameters that are too small to be compressed: they travel whole, with their momentum.

    Nobody asks for it by itself: the optimizer has the momentum of gradients that are not compressed.
    """

    momentum: float


@dataclass(frozen=True)
class Threshold:
    """Elements above `value` in magnitude are sent, at most `capacity` of a parameter's; the rest is kept."""

    value: float
    capacity: float = 0.05

    def __post_init__(self) -> None:
        if not self.value > 0:
            raise UsageError(f"Threshold: value must be a positive number, got {self.value!r}")
        _check_ratio("Threshold: capacity", self.capacity)


@dataclass(frozen=True)
class PowerSGD:
    """Products of two thin matrices (Vogels et al., NeurIPS 2019), the right one kept as the next step's start.

    Parameters with fewer than two dimensions travel as they are.
    """

    rank: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"PowerSGD: rank must be at least 1, got {self.rank!r}")


Compression = HalfCast | EightBit | QSGD | TopK | DGC | WholeMomentum | Threshold | PowerSGD


def _check_ratio(name: str, ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise UsageError(f"{name}: the ratio must be above 0 and at most 1, got {ratio!r}")
