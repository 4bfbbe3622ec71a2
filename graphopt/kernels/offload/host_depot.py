"""A depot in pinned host memory, for tensors on a GPU: copies run on streams of their own."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graphopt.kernels.offload.depot import Fetching, Layout, bytes_of_storage, layout_of
from graphopt.kernels.offload.tokens import PlacesByToken


@dataclass(eq=False)
class _Block:
    """A storage's bytes in pinned memory, and the event behind the copy that writes them."""

    memory: Tensor
    written: torch.cuda.Event
    held: Tensor | None
    layout: Layout


@dataclass(eq=False)
class HostDepot:
    """Values of one GPU in pinned memory.

    Pinning takes long: blocks are used again by values of the same size. The stream that computes waits for copies, the
    host never does; memory that is let go of behind such a wait is only used again by what comes after it.
    """

    device: torch.device
    _free: defaultdict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._out, self._back = torch.cuda.Stream(self.device), torch.cuda.Stream(self.device)
        self.tokens: PlacesByToken[_Block] = PlacesByToken(self._goes)

    def stow(self, tensor: Tensor) -> Tensor:
        """Begin to copy a tensor to the host; gives its token."""
        source = bytes_of_storage(tensor)
        free = self._free[source.nbytes]
        memory = free.pop() if free else torch.empty(source.nbytes, dtype=torch.uint8, pin_memory=True)
        self._out.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._out):
            memory.copy_(source, non_blocking=True)
            written = self._out.record_event()
        return self.tokens.new(_Block(memory, written, tensor, layout_of(tensor)))

    def settle(self, token: Tensor) -> None:
        """Let the stream that computes wait until it is copied, and let go of the tensor."""
        block = self.tokens.place_of(token)
        torch.cuda.current_stream(self.device).wait_event(block.written)
        block.held = None

    def fetch(self, token: Tensor) -> Fetching:
        """Begin to copy it back."""
        block = self.tokens.place_of(token)
        memory = torch.empty(block.memory.nbytes, dtype=torch.uint8, device=self.device)
        self._back.wait_stream(torch.cuda.current_stream(self.device))
        self._back.wait_event(block.written)
        with torch.cuda.stream(self._back):
            memory.copy_(block.memory, non_blocking=True)
            transfer = self._back.record_event()
        return Fetching(memory, block.layout, transfer)

    def wait(self, token: Tensor, fetching: Fetching) -> None:  # noqa: ARG002
        """Let the stream that computes wait for a tensor that is fetched."""
        torch.cuda.current_stream(self.device).wait_event(fetching.transfer)

    def abandon(self, fetching: Fetching) -> None:
        """Wait for a tensor that nobody reads."""
        fetching.transfer.synchronize()

    def _goes(self, block: _Block) -> None:
        """Its token is gone; copies on one stream keep their order, and those on the other are waited for."""
        if block.held is not None:
            block.written.synchronize()
        self._back.synchronize()
        self._free[block.memory.nbytes].append(block.memory)
