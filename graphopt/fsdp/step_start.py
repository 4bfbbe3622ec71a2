"""What is there when a step begins, of all that the budget counts, and of what the allocator counts."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from graphopt.device.storages import tensors_in, unique_storage_bytes


@dataclass(eq=False)
class StepStart:
    """The beginnings of a model's steps. On CUDA all that is allocated counts, as it does for everybody there.

    On a CPU the counter of the allocator has other things of the process, and not those from before it was there: a
    step then starts with what is known to be there, and goes on with what is allocated after.
    """

    model: nn.Module
    device: torch.device
    optimizers: list[weakref.ref[torch.optim.Optimizer]] = field(default_factory=list)
    _before: tuple[int, int] = (-1, 0)
    _beside_bytes: int = 0

    def beside_bytes(self, live_bytes: int, inputs: Sequence[torch.Tensor]) -> int:
        """What must be added to what the allocator has, `live_bytes` now, to count what the budget counts."""
        if self.device.type == "cuda":
            return 0
        now = live_bytes, sum(tensor.nbytes for tensor in inputs)
        if now != self._before:  # looking at all parameters takes long enough to be left out where nothing has changed
            self._before, self._beside_bytes = now, self._known_bytes(inputs) - live_bytes
        return self._beside_bytes

    def _known_bytes(self, inputs: Sequence[torch.Tensor]) -> int:
        """Bytes of this rank's shards, buffers, gradients, optimizers' states and the inputs."""
        parameters = list(self.model.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        optimizers = [there for each in self.optimizers if (there := each()) is not None]
        states = tensors_in([list(optimizer.state.values()) for optimizer in optimizers])
        held = [*parameters, *gradients, *self.model.buffers(), *states, *inputs]
        return unique_storage_bytes([t.to_local() if isinstance(t, DTensor) else t for t in held], self.device)
