"""What a model's training holds when a step begins, by name: what the measured part of a step is added to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from graphopt.device.storages import storage_bytes, storage_key, stored_parts, tensors_in, unique_storage_bytes

#: Looks after which what seldom changes its bytes is looked at again.
_LOOK_AGAIN = 64


class KnownMemory:
    """Bytes on one device of a model, of its optimizers' state, and of the outputs that are held."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model, self._device = model, device
        self._model_bytes, self._looks, self._state_looks = 0, 0, 0
        self._states: WeakKeyDictionary[torch.optim.Optimizer, tuple[int, int]] = WeakKeyDictionary()
        self._outputs: dict[int, tuple[StorageWeakRef, int]] = {}

    def model_bytes(self) -> int:
        """Parameters and buffers."""
        if self._looks % _LOOK_AGAIN == 0:
            self._model_bytes = self._bytes([*self._model.parameters(), *self._model.buffers()])
        self._looks += 1
        return self._model_bytes

    def updates(self, optimizer: torch.optim.Optimizer) -> None:
        """This one updates parameters of the model."""
        self._states.setdefault(optimizer, (0, 0))

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those that update parameters of the model and are there still."""
        return list(self._states)

    def state_bytes(self) -> int:
        """The state of the optimizers that update parameters of the model."""
        again = self._state_looks % _LOOK_AGAIN == 0
        self._state_looks += 1
        for optimizer, (states, _) in list(self._states.items()):
            if again or len(optimizer.state) != states:
                size = self._bytes(tensors_in(list(optimizer.state.values())))
                self._states[optimizer] = len(optimizer.state), size
        return sum(size for _, size in self._states.values())

    def returned(self, result: Any) -> None:
        """The model returned this; whoever holds it holds its bytes."""
        for tensor in with_storage(tensors_in(result)):
            if size := storage_bytes(tensor, self._device):
                self._outputs[storage_key(tensor)] = StorageWeakRef(tensor.untyped_storage()), size

    def held_output_bytes(self) -> int:
        """What was returned and is there still."""
        self._outputs = {key: kept for key, kept in self._outputs.items() if not kept[0].expired()}
        return sum(size for _, size in self._outputs.values())

    def _bytes(self, tensors: Iterable[torch.Tensor]) -> int:
        return unique_storage_bytes(with_storage(tensors), self._device)


def with_storage(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Those that have a storage to look at: not what torch.func wraps, and of sparse ones indices and values."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return [part for tensor in tensors if not wrapped(tensor) for part in stored_parts(tensor)]
