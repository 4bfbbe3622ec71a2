"""Ambient: the modes around a piece of a model's code, under which it must be captured whenever that happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

_DEVICE_TYPES = ("cpu", "cuda")


@dataclass(frozen=True)
class Ambient:
    """Whether gradients are wanted, and autocast by device type: whether it is on, and its dtype."""

    gradients: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    autocast_cache: bool

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, the modes are those that were recorded."""
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self.gradients))
            for device_type, enabled, dtype in self.autocast:
                stack.enter_context(torch.autocast(device_type, dtype, enabled, self.autocast_cache))
            yield


def ambient() -> Ambient:
    """The modes that hold now."""
    types = [name for name in _DEVICE_TYPES if name == "cpu" or torch.cuda.is_available()]
    autocast = tuple((name, torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in types)
    return Ambient(torch.is_grad_enabled(), autocast, torch.is_autocast_cache_enabled())
