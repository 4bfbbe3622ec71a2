"""What a model returned and somebody still holds, in host memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, strided

from graphopt.device.storages import stored_parts, tensors_in

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


class HeldOutputs:
    """The storages of what was returned, as long as they are there: a view of one, or a graph, may hold it."""

    def __init__(self) -> None:
        # PyTorch keeps the Python object of a storage as long as the storage itself
        self._storages: list[weakref.ref[torch.UntypedStorage]] = []

    def returned(self, result: Any) -> None:
        """The model returned this; whoever holds it holds its bytes."""
        if type(result) is Tensor and result.layout is strided:  # in most steps
            self._storages.append(weakref.ref(result.untyped_storage()))
            return
        self._storages += [weakref.ref(part.untyped_storage()) for part in with_storage(tensors_in(result))]

    def held_bytes(self) -> int:
        """What of it is there still."""
        there = {found._cdata: found for storage in self._storages if (found := storage()) is not None}
        self._storages = [weakref.ref(storage) for storage in there.values()]
        return sum(storage.nbytes() for storage in there.values() if storage.device.type == "cpu")


def with_storage(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Those that have a storage to look at: not what torch.func wraps, and of sparse ones indices and values."""
    return [part for tensor in tensors if not _is_wrapped(tensor) for part in stored_parts(tensor)]
