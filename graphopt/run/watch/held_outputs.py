"""What a model returned and somebody still holds, in host memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch

from graphopt.device.storages import stored_parts, tensors_in


class HeldOutputs:
    """The storages of what was returned, as long as they are there: a view of one, or a graph, may hold it."""

    def __init__(self) -> None:
        # PyTorch keeps the Python object of a storage as long as the storage itself
        self._storages: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    def returned(self, result: Any) -> None:
        """The model returned this; whoever holds it holds its bytes."""
        for storage in cpu_storages(tensors_in(result)):
            if size := storage.nbytes():
                self._storages[storage._cdata] = weakref.ref(storage), size

    def held_bytes(self) -> int:
        """What of it is there still."""
        gone = [key for key, (storage, _) in self._storages.items() if storage() is None]
        for key in gone:
            del self._storages[key]
        return sum(size for _, size in self._storages.values())


def cpu_storages(tensors: list[torch.Tensor]) -> list[torch.UntypedStorage]:
    """The storages in host memory behind tensors; asked for in every step."""
    if not all(map(_is_plain, tensors)):
        tensors = with_storage(tensors)
    return [tensor.untyped_storage() for tensor in tensors if tensor.is_cpu]


def with_storage(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Those that have a storage to look at: not what torch.func wraps, and of sparse ones indices and values."""
    return [part for tensor in tensors if not _is_wrapped(tensor) for part in stored_parts(tensor)]


_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) is torch.Tensor and tensor.layout is torch.strided and not _is_wrapped(tensor)
