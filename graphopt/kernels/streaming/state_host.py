"""Optimizer state of a GPU in pinned host memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphopt.device.elsewhere import held_elsewhere
from graphopt.kernels.layout import flat


@dataclass(eq=False)
class StateHost:
    """State in pinned memory, copied to one GPU and back on streams of their own."""

    device: torch.device

    def __post_init__(self) -> None:
        # by its address a tensor is known as long as this is there, and so must the tensor be
        self._made: list[Tensor] = []
        self._out, self._back = torch.cuda.Stream(self.device), torch.cuda.Stream(self.device)

    def new(self, like: Tensor) -> Tensor:
        """A tensor of zeros of this shape, layout and dtype, dense."""
        made = torch.zeros(like.numel(), dtype=like.dtype, pin_memory=True)
        self._made.append(made)
        held_elsewhere(made, self, self)
        return made.as_strided(like.shape, like.stride())

    def read(self, state: Tensor, start: int, into: Tensor) -> torch.cuda.Event:
        """Begin to copy elements of a tensor to the GPU, behind what it computes now."""
        return self._copied(self._out, flat(state)[start : start + into.numel()], into)

    def write(self, state: Tensor, start: int, source: Tensor) -> torch.cuda.Event:
        """Begin to copy them back, behind what makes them."""
        return self._copied(self._back, source, flat(state)[start : start + source.numel()])

    def wait(self, transfer: torch.cuda.Event) -> None:
        """Let the stream that computes wait for a copy."""
        torch.cuda.current_stream(self.device).wait_event(transfer)

    def finish(self, transfer: torch.cuda.Event) -> None:
        """Wait for a copy: the host may read what it wrote."""
        transfer.synchronize()

    def _copied(self, stream: torch.cuda.Stream, source: Tensor, target: Tensor) -> torch.cuda.Event:
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
            event: torch.cuda.Event = stream.record_event()
            return event
