"""What holds an optimizer's state where the device's memory does not."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from graphopt.kernels.layout import flat


class StateTransfers(Protocol):
    """Moves parts of tensors of state between where they are and the device."""

    def read(self, state: Tensor, start: int, into: Tensor) -> Any:
        """Begin to read elements of a tensor, in the order that they have in memory, behind what uses `into` now."""

    def write(self, state: Tensor, start: int, source: Tensor) -> Any:
        """Begin to write them back, behind what makes `source`."""

    def wait(self, transfer: Any) -> None:
        """What comes next may use the memory of a transfer. Raises OffloadError where it failed."""

    def finish(self, transfer: Any) -> None:
        """Wait until a transfer has ended. Raises OffloadError where it failed."""


class StateStore(StateTransfers, Protocol):
    """Makes tensors of state that are elsewhere, too."""

    def new(self, like: Tensor) -> Tensor:
        """A tensor of zeros of this shape, layout and dtype. Raises OffloadError where there is no room."""


class InMemory:
    """Transfers of ordinary tensors, which have ended when they begin."""

    def read(self, state: Tensor, start: int, into: Tensor) -> None:
        """Copy elements of a tensor."""
        into.copy_(flat(state)[start : start + into.numel()])

    def write(self, state: Tensor, start: int, source: Tensor) -> None:
        """Copy them back."""
        flat(state)[start : start + source.numel()].copy_(source)

    def wait(self, transfer: None) -> None:
        """It has ended."""

    def finish(self, transfer: None) -> None:
        """It has ended."""
