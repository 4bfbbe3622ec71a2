"""What tells a model's parameters from those that it had before."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from graphopt.device.storages import local_of


def parameters_seen(model: nn.Module) -> list[tuple[int, int, torch.dtype, torch.device]]:
    """Equal while the parameters are the same ones. It is asked for at each step, and so walks by itself."""
    found: list[tuple[int, int, torch.dtype, torch.device]] = []
    seen: set[nn.Module] = set()
    left: list[nn.Module | None] = [model]
    while left:
        module = left.pop()
        if module is None or module in seen:
            continue
        seen.add(module)
        # `.to()` gives a DTensor, which stays the same object, another shard
        found += [(id(p), id(local_of(p)), p.dtype, p.device) for p in module._parameters.values() if p is not None]
        left += module._modules.values()
    return found


def difference(before: Mapping[int, str], now: Mapping[int, str]) -> str:
    """One parameter, of two models' by identity, that one of them has not, in words."""
    new, gone = set(now) - set(before), set(before) - set(now)
    named = [f"{now[each]} is new" for each in new] + [f"{before[each]} is gone" for each in gone]
    return min(named, default="they have other names")
