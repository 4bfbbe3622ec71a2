"""The watch over steps of a model that FSDP2 shards, or of a block of one: they begin where parameters are gathered."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphopt.device.peak_window import CpuWindow, CudaWindow
from graphopt.device.storages import unique_storage_bytes
from graphopt.run.model.request import Request
from graphopt.run.watch.corrections import Corrections
from graphopt.run.watch.measured_step import Place
from graphopt.run.watch.sharding import Sharding, heed_sharding
from graphopt.run.watch.watch import Watch


class ShardedWatch(Watch):
    """A watch that is also told when FSDP2 gathers and scatters; `sharding` is what FSDP2 holds."""

    sharding: Sharding

    def __init__(
        self,
        model: nn.Module,
        window: CpuWindow | CudaWindow,
        device: torch.device,
        request: Request,
        corrections: Corrections,
    ) -> None:
        super().__init__(model, window, device, request, corrections)
        self.sharding = Sharding(model, device)
        heed_sharding(model, self)

    def arrives(self) -> None:
        """The model is called, and FSDP2 gathers its parameters first."""
        self.ends()
        self._window.take()
        self.sharding.arrives(self._live_bytes())

    def departs(self) -> None:
        """The model was called, and what FSDP2 gathered is freed."""
        self._look(Place.FORWARD)
        if self._step is not None:
            self.sharding.departs(self._live_bytes())

    def gradient_arrives(self, gradient: Tensor) -> None:
        """A backward begins, and FSDP2 gathers the parameters first."""
        step, sharding = self._step, self.sharding
        if step is None or step.is_recorded:
            return
        if not sharding.is_root:
            if not step.in_backward:
                self._window.take()
                sharding.returns(self._live_bytes())
            sharding.base_bytes -= unique_storage_bytes([gradient], self._device)
        elif not step.in_backward:
            self._look(Place.LOSS)
        step.in_backward = True

    def scatter_begins(self) -> None:
        """The backward has run. Where no gradient goes on from it, FSDP2 scatters only after all other backwards."""
        step, sharding = self._step, self.sharding
        if step is not None and step.in_backward and step.is_end and not sharding.is_root:
            self._window.take()
            sharding.base_bytes += self._live_bytes() - step.settled_bytes

    def scatter_ends(self) -> None:
        """FSDP2 has handed the gradients over."""
        if self._step is not None and self._step.in_backward:
            self._look(Place.SCATTER)
            self._step.in_backward = False
            self._record_backward(self._step)
