"""Bytes of Adam's counts of steps that are not where the optimizer's own would be, before they are made."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch

from graphopt.device.storages import allocated_bytes


def counts_on_device_bytes(optimizer: torch.optim.Optimizer, stepped: Iterable[torch.Tensor]) -> int:
    """Counts that are made on the device, where the optimizer's own would be on the CPU."""
    elsewhere = {
        id(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.device.type != "cpu" and not (group.get("fused") or group.get("capturable"))
    }
    made = [p for p in stepped if id(p) in elsewhere and "step" not in optimizer.state.get(p, {})]
    return sum(allocated_bytes(4, parameter.device) for parameter in made)


def counts_on_cpu_bytes(optimizer: torch.optim.Optimizer, away: Collection[int]) -> int:
    """Counts, to be made, of parameters of a CPU whose other state is elsewhere: those `away`, by `id`."""
    held = (parameter for group in optimizer.param_groups for parameter in group["params"])
    made = [p for p in held if id(p) in away and p.device.type == "cpu" and "step" not in optimizer.state.get(p, {})]
    return 4 * len(made)
