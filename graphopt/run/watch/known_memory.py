"""What a model's training holds when a step begins, by name: what the measured part of a step is added to."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from graphopt.device.storages import tensors_in, unique_storage_bytes
from graphopt.run.graphs.gradients import gradient_bytes
from graphopt.run.watch.behind_inputs import bytes_behind
from graphopt.run.watch.held_outputs import HeldOutputs, with_storage

#: Looks after which what seldom changes its bytes is looked at again.
_LOOK_AGAIN = 64


class StartOfStep(NamedTuple):
    """What is there when a step begins: `start_bytes` are those of model, wrapping, gradients and inputs.

    `state_bytes` is the optimizers' state, `held_bytes` what is held of the model's earlier outputs, `front_bytes` what
    is kept for the backward of what made the inputs.
    """

    start_bytes: int
    state_bytes: int = 0
    held_bytes: int = 0
    front_bytes: int = 0


@dataclass(eq=False)
class _State:
    """The state of an optimizer: how many entries it had when it was counted, and what these take."""

    of: weakref.ref[torch.optim.Optimizer]
    entries: int = 0
    size: int = 0


class KnownMemory:
    """Bytes on one device of a model, of its optimizers' state, and of the outputs that are held."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.outputs = HeldOutputs()
        self._model, self._device = model, device
        self._model_bytes, self._looks, self._state_looks = 0, 0, 0
        self._states: dict[int, _State] = {}

    def model_bytes(self) -> int:
        """Parameters and buffers."""
        if self._looks % _LOOK_AGAIN == 0:
            self._model_bytes = self._bytes([*self._model.parameters(), *self._model.buffers()])
        self._looks += 1
        return self._model_bytes

    def updates(self, optimizer: torch.optim.Optimizer) -> None:
        """This one updates parameters of the model."""
        known = self._states.get(id(optimizer))
        if known is None or known.of() is not optimizer:
            self._states[id(optimizer)] = _State(weakref.ref(optimizer))

    def optimizers(self) -> list[str]:
        """The classes of those that update parameters of the model and are there still."""
        return [type(found).__name__ for state in self._states.values() if (found := state.of()) is not None]

    def state_bytes(self) -> int:
        """The state of the optimizers that update parameters of the model."""
        again = self._state_looks % _LOOK_AGAIN == 0
        self._state_looks += 1
        self._states = {key: state for key, state in self._states.items() if state.of() is not None}
        for state in self._states.values():
            optimizer = state.of()
            if optimizer is not None and (again or len(optimizer.state) != state.entries):
                state.size = self._bytes(tensors_in(list(optimizer.state.values())))
                state.entries = len(optimizer.state)
        return sum(state.size for state in self._states.values())

    def begins(self, inputs: list[torch.Tensor], gradients: list[torch.Tensor], wrapping_bytes: int) -> StartOfStep:
        """What is there as a step begins with these inputs and gradients."""
        start_bytes = self.model_bytes() + self._bytes(inputs) + gradient_bytes(gradients, self._device)
        held_bytes, front_bytes = self.outputs.held_bytes(), bytes_behind(inputs, self._device)
        return StartOfStep(start_bytes + wrapping_bytes, self.state_bytes(), held_bytes, front_bytes)

    def _bytes(self, tensors: Iterable[torch.Tensor]) -> int:
        return unique_storage_bytes(with_storage(tensors), self._device)
