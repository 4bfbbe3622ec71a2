"""What is there when a step begins, of all that the budget counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from graphopt.device.storages import tensors_in, unique_storage_bytes


def known_bytes(
    model: nn.Module, inputs: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer | None, device: torch.device
) -> int:
    """Bytes of this rank's shards, buffers, gradients, the optimizer's state and the inputs."""
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    states = tensors_in(list(optimizer.state.values())) if optimizer is not None else []
    held = [*parameters, *gradients, *model.buffers(), *states, *inputs]
    return unique_storage_bytes([t.to_local() if isinstance(t, DTensor) else t for t in held], device)
