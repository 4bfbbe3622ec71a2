"""Bytes that a training step holds whatever the plan: the optimizer's state, masters, summed gradients.

The accounting is that of Rajbhandari et al., "ZeRO" (2020), section 3.1, for Φ parameters under Adam: 16Φ
in float32, gradients summed up or not; 16Φ for half parameters with float32 masters, and 18Φ where their
gradients are summed up, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from graphopt.base.errors import UsageError
from graphopt.cost_models.rehearsal import rehearse_step
from graphopt.device.elsewhere import holder_of
from graphopt.device.storages import allocated_bytes, local_of, planned_bytes

#: Whether a parameter gets a gradient.
Learns = Callable[[torch.Tensor], bool]


def optimizer_bytes(
    optimizer: torch.optim.Optimizer,
    *,
    masters: bool = False,
    learns: Learns = lambda parameter: parameter.requires_grad,
) -> int:
    """Bytes of the optimizer's state on the parameters' device: real where it is there, else what a step will make.

    With `masters` it is predicted for float32 copies of the half parameters. `learns` says which
    parameters get a gradient. Raises UsageError for an optimizer whose state cannot be known before it
    has stepped.
    """
    if type(optimizer) in _KNOWN:
        return _held_bytes(optimizer) + _predicted_bytes(optimizer, masters, learns)
    try:
        return rehearse_step(optimizer, masters=masters, learns=learns).state_bytes
    except UsageError:
        if not optimizer.state:
            raise
        return _held_bytes(optimizer)


def nbytes(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> int:
    """Bytes of a new tensor of this shape, as the allocator hands them out; of a DTensor this rank's shard."""
    return planned_bytes(local_of(tensor).numel() * (dtype or tensor.dtype).itemsize, tensor.device)


def float32_bytes(tensor: torch.Tensor) -> int:
    """Bytes of its copy in float32, or wider where it is wider."""
    return planned_bytes(local_of(tensor).numel() * max(tensor.dtype.itemsize, 4), tensor.device)


_KNOWN = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


def _held_bytes(optimizer: torch.optim.Optimizer) -> int:
    held = [
        value
        for parameter, state in optimizer.state.items()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.device == parameter.device and holder_of(value) is None
    ]
    return sum(_storages(held).values())


def _predicted_bytes(optimizer: torch.optim.Optimizer, masters: bool, learns: Learns) -> int:
    """State of those that have none yet; an SGD that has stepped without momentum leaves an entry with no tensor."""
    total_bytes = 0
    for group in optimizer.param_groups:
        copies = _state_copies(optimizer, group)
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if learns(parameter) and not any(isinstance(value, torch.Tensor) for value in state.values()):
                own_bytes = float32_bytes(parameter) if masters else nbytes(parameter)
                total_bytes += copies * own_bytes + _step_bytes(optimizer, group, parameter.device)
    return total_bytes


def _state_copies(optimizer: torch.optim.Optimizer, group: dict[str, object]) -> int:
    """How many tensors of a parameter's own size it holds."""
    if type(optimizer) is torch.optim.SGD:
        return 1 if group["momentum"] else 0
    return 3 if group["amsgrad"] else 2


def _step_bytes(optimizer: torch.optim.Optimizer, group: dict[str, object], device: torch.device) -> int:
    """Adam counts its steps in a float tensor for each parameter, on the CPU unless fused or capturable."""
    if type(optimizer) is torch.optim.SGD or (device.type != "cpu" and not (group["fused"] or group["capturable"])):
        return 0
    return allocated_bytes(4 if group["fused"] else torch.get_default_dtype().itemsize, device)


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Identity -> bytes of each storage; meta tensors have one too."""
    storages = ((local_of(tensor).untyped_storage(), tensor.device) for tensor in tensors)
    return {storage._cdata: allocated_bytes(storage.nbytes(), device) for storage, device in storages}
