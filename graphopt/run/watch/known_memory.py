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
from graphopt.run.watch.held_outputs import HeldOutputs, cpu_storages, with_storage

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
        self._model_bytes, self._looks, self._state_looks, self._starts = 0, 0, 0, 0
        self._states: dict[int, _State] = {}
        self._signs: tuple[int, ...] = ()
        self._named = 0, 0, 0

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

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those that update parameters of the model and are there still."""
        return [found for state in self._states.values() if (found := state.of()) is not None]

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

    def begins(
        self, live_bytes: int, inputs: list[torch.Tensor], gradients: list[torch.Tensor], wrapping_bytes: int
    ) -> StartOfStep:
        """What is there as a step begins with so many bytes allocated, with these inputs and gradients.

        What is neither an input nor a held output is named anew where something of it may have changed: as many bytes
        with as many gradients, states, and inputs that have a gradient are taken for the same.
        """
        given = {storage._cdata: storage.nbytes() for storage in cpu_storages(inputs)}
        given_bytes, held_bytes = sum(given.values()), self.outputs.held_bytes()
        behind = sum(tensor.grad_fn is not None for tensor in inputs)
        rest_bytes = live_bytes - given_bytes - held_bytes
        signs = (rest_bytes, wrapping_bytes, len(gradients), behind, *self._entries())
        if self._starts % _LOOK_AGAIN == 0:
            self._looks = self._state_looks = 0
            self._signs = ()
        self._starts += 1
        if signs != self._signs:
            start_bytes = self.model_bytes() + wrapping_bytes + gradient_bytes(gradients, self._device)
            front_bytes = bytes_behind(inputs, self._device) if behind else 0
            self._named, self._signs = (start_bytes, self.state_bytes(), front_bytes), signs
        start_bytes, state_bytes, front_bytes = self._named
        return StartOfStep(start_bytes + given_bytes, state_bytes, held_bytes, front_bytes)

    def _entries(self) -> list[int]:
        return [len(found.state) if (found := state.of()) is not None else -1 for state in self._states.values()]

    def _bytes(self, tensors: Iterable[torch.Tensor]) -> int:
        return unique_storage_bytes(with_storage(tensors), self._device)
