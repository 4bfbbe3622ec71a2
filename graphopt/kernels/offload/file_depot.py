"""A depot on a file that nobody else can open."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from graphopt.base.errors import OffloadError, UsageError
from graphopt.kernels.offload.depot import Fetching, Layout, layout_of
from graphopt.kernels.offload.lane import Lane
from graphopt.kernels.offload.tokens import PlacesByToken

#: Where a region of the file begins: blocks of a disk.
_ALIGNMENT = 4096


@dataclass(eq=False)
class _Region:
    """A storage's bytes on the file, and the transfer that writes them. `held` is the tensor while that runs."""

    offset: int
    size_bytes: int
    written: int
    held: Tensor | None
    layout: Layout


@dataclass(eq=False)
class FileDepot:
    """Values on a file in `folder` without a name, which is gone with the process.

    Regions of the file are used again by values of the same size. `bytes_per_second` makes it slower than it is.
    """

    folder: Path
    bytes_per_second: float = 0.0
    _free: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    _end: int = 0

    def __post_init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - open as long as the depot is there
        except OSError as error:
            raise UsageError(f"offload: no file can be made in {str(self.folder)!r}: {error.strerror}") from error
        self.lane = Lane(self._file.fileno(), self.bytes_per_second)
        self.tokens: PlacesByToken[_Region] = PlacesByToken(self._goes)

    def stow(self, tensor: Tensor) -> Tensor:
        """Begin to write a tensor; gives its token."""
        storage = tensor.untyped_storage()
        size_bytes = storage.nbytes()
        offset = self._new_offset(size_bytes)
        written = self.lane.begin(True, offset, storage.data_ptr(), size_bytes)
        return self.tokens.new(_Region(offset, size_bytes, written, tensor, layout_of(tensor)))

    def settle(self, token: Tensor) -> None:
        """Wait until it is written, and let go of the tensor."""
        region = self.tokens.place_of(token)
        try:
            self.lane.wait(region.written)
        finally:
            region.held = None

    def fetch(self, token: Tensor) -> Fetching:
        """Begin to read it back."""
        region = self.tokens.place_of(token)
        memory = torch.empty(region.size_bytes, dtype=torch.uint8)
        transfer = self.lane.begin(False, region.offset, memory.data_ptr(), region.size_bytes)
        return Fetching(memory, region.layout, transfer)

    def wait(self, token: Tensor, fetching: Fetching) -> None:
        """Wait for a tensor that is fetched."""
        try:
            self.lane.wait(fetching.transfer)  # always: its memory may go with an error
        finally:
            self.lane.wait(self.tokens.place_of(token).written)

    def abandon(self, fetching: Fetching) -> None:
        """Wait for a tensor that nobody reads."""
        with suppress(OffloadError):
            self.lane.wait(fetching.transfer)

    def _goes(self, region: _Region) -> None:
        """Its token is gone: the region is free once nothing is on its way there."""
        if region.held is not None:
            with suppress(OffloadError):
                self.lane.wait(region.written)
        self._free[region.size_bytes].append(region.offset)

    def _new_offset(self, size_bytes: int) -> int:
        if free := self._free[size_bytes]:
            return free.pop()
        offset = self._end
        self._end += -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
        return offset
