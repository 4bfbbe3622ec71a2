"""How a dynamic loss scale moves after a step."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_update_(
    scale: Tensor,
    growth_tracker: Tensor,
    hysteresis_tracker: Tensor,
    found_inf: Tensor,
    *,
    growth: float,
    backoff: float,
    interval: int,
    hysteresis: int,
    lowest: float,
    highest: float,
) -> None:
    """See `graphopt.kernels.tail.ops`; products are rounded once, from fp64, as `_amp_update_scale_` rounds them."""
    overflow = found_inf != 0
    good_steps = torch.where(overflow, 0, growth_tracker + 1)
    patience = torch.where(overflow, (hysteresis_tracker - 1).clamp(min=0), hysteresis_tracker)
    grows = good_steps == interval
    lower = (scale.double() * backoff).clamp(min=lowest).float()
    higher = (scale.double() * growth).clamp(max=highest).float()
    scale.copy_(
        torch.where(
            overflow,
            torch.where(patience == 0, lower, scale),
            torch.where(grows & torch.isfinite(higher), higher, scale),
        )
    )
    growth_tracker.copy_(torch.where(grows, 0, good_steps))
    hysteresis_tracker.copy_(torch.where(grows, hysteresis, patience))
