"""Bytes that a model holds whatever the plan: parameters, buffers, gradients, optimizer state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from graphopt.errors import UsageError


@dataclass(frozen=True, slots=True)
class ModelState:
    """Bytes by what they are for; each storage counts once, however many names it has."""

    parameter_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    optimizer_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.parameter_bytes + self.buffer_bytes + self.gradient_bytes + self.optimizer_bytes


def model_state(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> ModelState:
    """State of `module` while it trains: all gradients present, frozen parameters having none.

    Gradients are as large as their parameters. `optimizer`'s own tensors count where it has any, else
    what SGD, Adam or AdamW will hold after their first step; on the parameters' device only. Raises
    UsageError for other optimizers that have not stepped yet.
    """
    parameters = list(module.parameters())
    parameter_storages = _storages(parameters)
    buffers = {key: size for key, size in _storages(module.buffers()).items() if key not in parameter_storages}
    return ModelState(
        parameter_bytes=sum(parameter_storages.values()),
        buffer_bytes=sum(buffers.values()),
        gradient_bytes=sum(_nbytes(parameter) for parameter in parameters if parameter.requires_grad),
        optimizer_bytes=0 if optimizer is None else optimizer_bytes(optimizer),
    )


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimizer's state: real where it has stepped, else predicted. Raises UsageError as `model_state`."""
    held = [
        value
        for parameter, state in optimizer.state.items()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.device == parameter.device
    ]
    return sum(_storages(held).values()) if held else _predicted_bytes(optimizer)


def _predicted_bytes(optimizer: torch.optim.Optimizer) -> int:
    total_bytes = 0
    for group in optimizer.param_groups:
        copies = _state_copies(optimizer, group)
        for parameter in group["params"]:
            if parameter.requires_grad:
                total_bytes += copies * _nbytes(parameter) + _step_bytes(optimizer, group, parameter.device)
    return total_bytes


def _state_copies(optimizer: torch.optim.Optimizer, group: dict[str, object]) -> int:
    """How many tensors of a parameter's own size and dtype it holds."""
    if type(optimizer) is torch.optim.SGD:
        return 1 if group["momentum"] else 0
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        return 3 if group["amsgrad"] else 2
    raise UsageError(
        f"the state of {type(optimizer).__name__} cannot be known before its first step: run one step "
        "before planning, or leave the optimizer out and name its bytes with reserve="
    )


def _step_bytes(optimizer: torch.optim.Optimizer, group: dict[str, object], device: torch.device) -> int:
    """Adam counts its steps in a float tensor for each parameter, on the CPU unless fused or capturable."""
    if type(optimizer) is torch.optim.SGD or (device.type != "cpu" and not (group["fused"] or group["capturable"])):
        return 0
    return 4 if group["fused"] else torch.get_default_dtype().itemsize


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Identity -> bytes of each storage; meta tensors have one too."""
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
