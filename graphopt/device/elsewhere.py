"""Tensors of state whose storage takes no memory of the device, and who holds it."""

from __future__ import annotations

import weakref

import torch

#: By the address of the storage, which nobody else has as long as its memory is there.
_HOLDERS: dict[int, weakref.ref[object]] = {}


def held_elsewhere(tensor: torch.Tensor, memory: object, holder: object) -> None:
    """Note that a tensor's storage is held by `holder`, as long as that is there and the storage's `memory` is."""
    address = tensor.untyped_storage().data_ptr()
    _HOLDERS[address] = weakref.ref(holder)
    weakref.finalize(memory, _HOLDERS.pop, address, None).atexit = False


def holder_of(tensor: torch.Tensor) -> object | None:
    """Who holds a tensor's storage; None where that is ordinary memory of its device."""
    if not _HOLDERS or tensor.device.type != "cpu" or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return None
    found = _HOLDERS.get(tensor.untyped_storage().data_ptr())
    return found() if found is not None else None
