"""Optimizer state in a file: tensors that are mapped from it, and that updates read and write beside the mapping."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from graphopt.base.errors import OffloadError, UsageError
from graphopt.device.elsewhere import held_elsewhere
from graphopt.kernels.offload.lane import Lane


class StateFile:
    """State on a file in `folder` without a name, which is gone with the last tensor on it.

    A tensor on it is an ordinary one to all who look, such as `optimizer.state_dict()`: the system reads its pages when
    they are touched, and keeps or drops them as it likes. Updates do not touch them: a thread reads and writes the
    file, as a failure is an error there, and a crash where memory is mapped. `bytes_per_second` makes it slower.
    """

    def __init__(self, folder: Path, bytes_per_second: float = 0.0) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as its tensors are there
        except OSError as error:
            message = f"offload_optimizer: no file can be made in {str(folder)!r}: {error.strerror}"
            raise UsageError(message) from error
        self.folder, self._end, self._process = folder, 0, os.getpid()
        self._offsets: dict[int, int] = {}
        #: Why the state is not whole; "" while it is.
        self._failed = ""
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self.lane = Lane(self._file.fileno(), bytes_per_second)
        weakref.finalize(self, _close, self.lane, self._process).atexit = False

    def new(self, like: Tensor) -> Tensor:
        """A tensor of zeros of this shape, layout and dtype, dense. Raises OffloadError where the disk is full."""
        size_bytes = like.numel() * like.dtype.itemsize
        used = self._free[size_bytes].pop() if self._free[size_bytes] else None
        offset = self._grown(size_bytes) if used is None else used
        memory = mmap.mmap(self._file.fileno(), size_bytes, offset=offset)
        if used is not None:
            _clear(memory, size_bytes)
        flat = torch.frombuffer(memory, dtype=like.dtype, count=like.numel())
        address = flat.data_ptr()
        self._offsets[address] = offset
        weakref.finalize(memory, _goes, weakref.ref(self), address, size_bytes).atexit = False
        held_elsewhere(flat, memory, self)
        return flat.as_strided(like.shape, like.stride())

    def forget(self, address: int, size_bytes: int) -> None:
        """The tensor that was mapped there is gone: its part of the file may be another one's."""
        if self._process == os.getpid():
            self._free[size_bytes].append(self._offsets.pop(address))

    def read(self, state: Tensor, start: int, into: Tensor) -> int:
        """Begin to read elements of a tensor."""
        return self._begin(False, state, start, into)

    def write(self, state: Tensor, start: int, source: Tensor) -> int:
        """Begin to write them back."""
        return self._begin(True, state, start, source)

    def wait(self, transfer: int) -> None:
        """Wait for a transfer."""
        self.finish(transfer)

    def finish(self, transfer: int) -> None:
        """Wait for a transfer."""
        try:
            self.lane.wait(transfer)
        except OffloadError as error:
            self._failed = str(error)
            raise

    def _grown(self, size_bytes: int) -> int:
        """Where the next tensor lies; its blocks are reserved now, as a mapping of what a full disk lacks crashes."""
        offset = self._end
        try:
            os.posix_fallocate(self._file.fileno(), offset, size_bytes)
        except OSError as error:
            raise OffloadError(
                f"offload_optimizer: no room for {size_bytes} bytes of state in {str(self.folder)!r}: {error.strerror}"
            ) from error
        self._end += -(-size_bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        return offset

    def _begin(self, is_write: bool, state: Tensor, start: int, memory: Tensor) -> int:
        if self._process != os.getpid():
            raise OffloadError("optimizer state in a file cannot be updated by a process that was forked since")
        if self._failed:
            raise OffloadError(f"the optimizer's state is not whole, as a transfer failed before: {self._failed}")
        offset = self._offsets[state.untyped_storage().data_ptr()] + start * state.dtype.itemsize
        # what the user writes into a tensor between two steps is as good as what was written last
        return self.lane.begin(is_write, offset, memory.data_ptr(), memory.nbytes, is_checked=False)


def _clear(memory: mmap.mmap, size_bytes: int) -> None:
    zeros = bytes(2**20)
    for start in range(0, size_bytes, len(zeros)):
        memory[start : start + len(zeros)] = zeros[: size_bytes - start]


def _close(lane: Lane, process: int) -> None:
    """A process that was forked has no thread to end."""
    if process == os.getpid():
        lane.close()


def _goes(there: weakref.ref[StateFile], address: int, size_bytes: int) -> None:
    if (store := there()) is not None:
        store.forget(address, size_bytes)
