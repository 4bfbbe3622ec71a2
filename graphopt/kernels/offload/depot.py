"""Depots: where values lie while nothing reads them, in a file or in host memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Fetching:
    """A tensor that is on its way, and its transfer: whoever holds this keeps the memory that is written to."""

    memory: Tensor
    layout: Layout
    transfer: Any

    def tensor(self) -> Tensor:
        """The tensor, whose bits are there when the transfer has ended."""
        return self.layout.on(self.memory)


class Depot(Protocol):
    """Takes the storages of tensors, whole, and gives them back with the same bits."""

    def __hash__(self) -> int:
        """Each is itself alone."""

    def stow(self, tensor: Tensor) -> Tensor:
        """Begin to write a tensor; gives its token. The tensor is held until that is done."""

    def settle(self, token: Tensor) -> None:
        """Wait until it is written, and let go of the tensor. Raises OffloadError where writing failed."""

    def fetch(self, token: Tensor) -> Fetching:
        """Begin to read it back."""

    def wait(self, token: Tensor, fetching: Fetching) -> None:
        """Wait for a tensor that is fetched. Raises OffloadError where reading, or writing, failed."""

    def abandon(self, fetching: Fetching) -> None:
        """Wait for a tensor that nobody reads, whether or not that fails."""


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in its storage."""

    start: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def on(self, memory: Tensor) -> Tensor:
        """The tensor on a storage of bytes."""
        return torch.empty(0, dtype=self.dtype, device=memory.device).set_(
            memory.untyped_storage(), self.start, self.shape, self.stride
        )


def layout_of(tensor: Tensor) -> Layout:
    """How it lies in its storage."""
    return Layout(int(tensor.storage_offset()), tensor.shape, tensor.stride(), tensor.dtype)


def bytes_of_storage(tensor: Tensor) -> Tensor:
    """A tensor's whole storage as bytes."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage, 0, (storage.nbytes(),), (1,))
