"""The loss scale's state: three numbers on the model's device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from graphopt.base.errors import UsageError
from graphopt.passes.window.loss_scale import DynamicLossScale, LossScale


class ScaleState:
    """Scale and trackers; `value` is None without a loss scale."""

    def __init__(self, how: LossScale | None, device: torch.device) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        if how is not None:
            self._tensors["scale"] = torch.full((), how.initial, dtype=torch.float32, device=device)
        if isinstance(how, DynamicLossScale):
            self._tensors["growth_tracker"] = torch.zeros((), dtype=torch.int32, device=device)
            self._tensors["hysteresis_tracker"] = torch.full((), how.hysteresis, dtype=torch.int32, device=device)
        #: As numbers of the host: how it began, or what was loaded last.
        self.started_from = self.state_dict()

    @property
    def value(self) -> torch.Tensor | None:
        """The scale of the next step."""
        return self._tensors.get("scale")

    def tensor(self, key: str) -> torch.Tensor:
        """ "scale", "growth_tracker" or "hysteresis_tracker"."""
        return self._tensors[key]

    def state_dict(self) -> dict[str, float]:
        """Plain numbers by name."""
        return {key: tensor.item() for key, tensor in self._tensors.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`; raises UsageError where it is that of another kind of loss scale."""
        if set(state) != set(self._tensors):
            raise UsageError(
                f"the saved loss scale has {sorted(state) or 'nothing'}, this step's has {sorted(self._tensors)}"
            )
        for key, tensor in self._tensors.items():
            tensor.fill_(state[key])
        self.started_from = self.state_dict()
