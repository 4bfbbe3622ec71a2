"""A depot on a file that nobody else can open."""

from __future__ import annotations

import os
import tempfile
import threading
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
    held: Tensor | None
    layout: Layout
    process: int
    written: int = 0


@dataclass(eq=False)
class FileDepot:
    """Values on a file in `folder` without a name, which is gone with the process. One that is forked has its own.

    Regions of the file are used again by values of the same size, and all of it once nothing is there.
    `bytes_per_second` makes it slower than it is.
    """

    folder: Path
    bytes_per_second: float = 0.0
    _free: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    #: What transfers read from or write to: it stays though what began them is interrupted.
    _writing: set[_Region] = field(default_factory=set)
    _reading: dict[int, Tensor] = field(default_factory=dict)
    _end: int = 0

    def __post_init__(self) -> None:
        self.tokens: PlacesByToken[_Region] = PlacesByToken(self._goes)
        self._opens()

    def _opens(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - open as long as the depot is there
        except OSError as error:
            raise UsageError(f"no file can be made in {str(self.folder)!r}: {error.strerror}") from error
        self.lane = Lane(self._file.fileno(), self.bytes_per_second)
        self._process, self._end, self._lock = os.getpid(), 0, threading.RLock()
        self._free.clear()

    def stow(self, tensor: Tensor) -> Tensor:
        """Begin to write a tensor; gives its token."""
        if self._process != os.getpid():
            self._opens()
        storage = tensor.untyped_storage()
        size_bytes = storage.nbytes()
        with self._lock:
            region = _Region(self._new_offset(size_bytes), size_bytes, tensor, layout_of(tensor), self._process)
            self._writing.add(region)
        region.written = self.lane.begin(True, region.offset, storage.data_ptr(), size_bytes)
        token = self.tokens.new(region)
        self._writing.discard(region)
        return token

    def settle(self, token: Tensor) -> None:
        """Wait until it is written, and let go of the tensor."""
        region = self._region_of(token)
        try:
            self.lane.wait(region.written)
        finally:
            region.held = None

    def fetch(self, token: Tensor) -> Fetching:
        """Begin to read it back."""
        region = self._region_of(token)
        memory = torch.empty(region.size_bytes, dtype=torch.uint8)
        self._reading[memory.data_ptr()] = memory
        transfer = self.lane.begin(False, region.offset, memory.data_ptr(), region.size_bytes)
        return Fetching(memory, region.layout, transfer)

    def wait(self, token: Tensor, fetching: Fetching) -> None:
        """Wait for a tensor that is fetched."""
        try:
            self._read(fetching)
        finally:
            self.lane.wait(self._region_of(token).written)

    def abandon(self, fetching: Fetching) -> None:
        """Wait for a tensor that nobody reads."""
        with suppress(OffloadError):
            self._read(fetching)

    def _read(self, fetching: Fetching) -> None:
        try:
            self.lane.wait(fetching.transfer)
        finally:
            self._reading.pop(fetching.memory.data_ptr(), None)

    def _region_of(self, token: Tensor) -> _Region:
        region = self.tokens.place_of(token)
        if region.process != os.getpid():
            raise OffloadError("a value that was moved before this process was forked is in its parent's file alone")
        return region

    def _goes(self, region: _Region) -> None:
        """Its token is gone: the region is free once nothing is on its way there."""
        if region.process != os.getpid():
            return
        if region.held is not None:
            with suppress(OffloadError):
                self.lane.wait(region.written)
        with self._lock:
            self._free[region.size_bytes].append(region.offset)
            if not len(self.tokens) and not self._writing:  # sizes that come no more would keep their regions
                self._free.clear()
                self._end = 0

    def _new_offset(self, size_bytes: int) -> int:
        if free := self._free[size_bytes]:
            return free.pop()
        offset = self._end
        self._end += -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
        return offset
