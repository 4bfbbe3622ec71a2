"""What is saved and loaded of a training step beside its model and its optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graphopt.base.errors import UsageError
from graphopt.compression.residuals import of_each_rank
from graphopt.step.optimizer.optimizer_view import OptimizerView
from graphopt.step.ranks.exchange import Exchange
from graphopt.step.scale_state import ScaleState
from graphopt.step.sharding.share_out import Shared
from graphopt.step.sharding.state import masters_given, masters_taken


@dataclass(frozen=True)
class StepState:
    """The loss scale, float32 masters, and what compression keeps, which is each rank's own."""

    scale: ScaleState
    view: OptimizerView
    exchange: Exchange | None
    sharded: Shared | None

    def given(self) -> dict[str, Any]:
        """As it is saved; masters of parameters that are shared out as DTensors."""
        masters = {**self.view.masters}
        if masters and self.sharded is not None and not self.sharded.is_over:
            masters = masters_given(masters, self.sharded)
        state = {"loss_scale": self.scale.state_dict(), "masters": masters}
        return {**state, "compression": self.exchange.state_dict()} if self.exchange else state

    def taken(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Go on from `given()`, or the list of all ranks' of then; raises UsageError where it is another step's."""
        every = of_each_rank(state)
        masters = every[0]["masters"]
        if set(masters) != set(self.view.masters):
            raise UsageError("the saved state has masters for other parameters than this step")
        if masters and self.sharded is not None and not self.sharded.is_over:
            masters = masters_taken(masters, self.sharded)
        for name, master in self.view.masters.items():
            if masters[name].shape != master.shape:
                raise UsageError(
                    f"the saved master of {name} has the shape {list(masters[name].shape)}, and this step's has "
                    f"{list(master.shape)}"
                )
        if self.exchange and all("compression" in one for one in every):
            compression = [one["compression"] for one in every]
            self.exchange.load_state_dict(compression[0] if isinstance(state, Mapping) else compression)
        self.scale.load_state_dict(every[0]["loss_scale"])
        with torch.no_grad():
            for name, master in self.view.masters.items():
                master.copy_(masters[name])
