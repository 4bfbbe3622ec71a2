"""What is asked of a training step, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from graphopt.compression.choose import Auto
from graphopt.compression.methods import Compression
from graphopt.passes.window.clip import Clip
from graphopt.passes.window.loss_scale import LossScale
from graphopt.run.model.request import OnExcess
from graphopt.step.division import Accumulate
from graphopt.step.window import Weights


@dataclass(frozen=True)
class StepOptions:
    """What is done with the gradients of a step."""

    accumulate: Accumulate = 1
    clip: Clip | None = None
    loss_scale: LossScale | None = None
    weights: Weights = None
    update_in_backward: bool = False
    compress: Compression | Auto | None = None
    on_excess: OnExcess = "correct"


@dataclass(frozen=True)
class StepResult:
    """What a step gives back; reading `skipped` or a tensor's number waits for the device.

    `loss` is the mean over the global batch, unscaled; `grad_norm` the norm before clipping, of all
    gradients or a vector of the groups' (None where nobody asked for one); `loss_scale` the scale that
    this step used, 1.0 without one.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor | None
    found_inf: torch.Tensor | None
    loss_scale: torch.Tensor | float

    @property
    def skipped(self) -> bool:
        """Whether gradients overflowed, or the batch weighed nothing, and nothing was updated."""
        return self.found_inf is not None and bool(self.found_inf != 0)
