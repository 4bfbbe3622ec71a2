"""What a model's training holds when a step begins, by name: what the measured part of a step is added to."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
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
#: Searches for optimizers that found none, after which there is none more: each takes some ms.
_MOST_IN_VAIN = 8


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
        #: Looks for optimizers that were made meanwhile, and tells `updates` of them.
        self.looks_for_optimizers: Callable[[], None] | None = None
        self._references, self._references_of_ends, self._in_vain = 0, 0, 0
        #: Those that are trained; and the first and the last of them.
        self._trained: list[weakref.ref[nn.Parameter]] = []
        self._ends: list[weakref.ref[nn.Parameter]] = []
        self._model, self._device = model, device
        self._model_bytes, self._looks, self._state_looks = 0, 0, 0
        self._states: dict[int, _State] = {}

    def model_bytes(self) -> int:
        """Parameters and buffers."""
        if self._looks % _LOOK_AGAIN == 0:
            self._model_bytes = self._bytes([*self._model.parameters(), *self._model.buffers()])
            self._trained = [weakref.ref(each) for each in self._model.parameters() if each.requires_grad]
            self._ends = [*self._trained[:1], *self._trained[1:][-1:]]
        self._looks += 1
        return self._model_bytes

    def updates(self, optimizer: torch.optim.Optimizer) -> None:
        """This one updates parameters of the model."""
        known = self._states.get(id(optimizer))
        if known is None or known.of() is not optimizer:
            self._states[id(optimizer)] = _State(weakref.ref(optimizer))

    def state_bytes(self) -> int:
        """The state of the optimizers that update parameters of the model; once where one is around another.

        Accelerate's has the state of the one inside as its own.
        """
        again = self._state_looks % _LOOK_AGAIN == 0
        self._state_looks += 1
        self._states = {key: state for key, state in self._states.items() if state.of() is not None}
        sizes: dict[int, int] = {}
        for state in self._states.values():
            if (optimizer := state.of()) is None:
                continue
            held = optimizer.state
            if again or len(held) != state.entries:
                state.size, state.entries = self._bytes(tensors_in(list(held.values()))), len(held)
            sizes[id(held)] = state.size
        return sum(sizes.values())

    def begins(self, inputs: list[torch.Tensor], gradients: list[torch.Tensor], wrapping_bytes: int) -> StartOfStep:
        """What is there as a step begins with these inputs and gradients."""
        start_bytes = self.model_bytes() + self._bytes(inputs) + gradient_bytes(gradients, self._device)
        held_bytes, front_bytes = self.outputs.held_bytes(), bytes_behind(inputs, self._device)
        self._look_for_optimizers()
        return StartOfStep(start_bytes + wrapping_bytes, self.state_bytes(), held_bytes, front_bytes)

    def has_other_state(self, state_bytes: int) -> bool:
        """Whether optimizers have other state than this as a step begins like those before it: seen quickly.

        One that was made meanwhile refers to the first or the last parameter, and state that it loads once more.
        """
        if _references_to(self._ends) <= self._references_of_ends:
            return False
        self._look_for_optimizers()
        return self.state_bytes() != state_bytes

    def _look_for_optimizers(self) -> None:
        """Look for some that were made since, where more refers to parameters, or one is gone that another replaces."""
        before, self._references = self._references, _references_to(self._trained)
        self._references_of_ends = _references_to(self._ends)
        is_gone = any(state.of() is None for state in self._states.values())
        if self.looks_for_optimizers is None or self._in_vain >= _MOST_IN_VAIN:
            return
        if is_gone or self._references > before > 0:
            known = set(self._states)
            self.looks_for_optimizers()
            self._in_vain = 0 if set(self._states) - known else self._in_vain + 1

    def _bytes(self, tensors: Iterable[torch.Tensor]) -> int:
        return unique_storage_bytes(with_storage(tensors), self._device)


def _references_to(parameters: Iterable[weakref.ref[nn.Parameter]]) -> int:
    return sum(sys.getrefcount(each()) for each in parameters)
