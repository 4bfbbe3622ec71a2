"""A lane to a file: transfers between memory and the file, in the order in which they were begun, beside what computes.

The lane is a thread in C++: one of Python's would wait for the interpreter's lock while the runner computes.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

from graphopt.base.compiler import Recipe, load_library
from graphopt.base.errors import CompileError, OffloadError, UsageError

#: What a transfer ends with where the file has fewer bytes than were written, or others.
_ENDS_EARLY, _IS_OTHER = -1, -2


class Lane:
    """One file's lane; with `bytes_per_second` no transfer is faster than that."""

    def __init__(self, file: int, bytes_per_second: float = 0.0) -> None:
        self._library = _library()
        self._lane = ctypes.c_void_p(self._library.graphopt_open_lane(file, bytes_per_second))

    def begin(self, is_write: bool, offset: int, address: int, size_bytes: int, *, is_checked: bool = True) -> int:
        """Begin to write memory to the file, or to read it back; what is returned is waited for.

        Where it `is_checked`, what is read must be what was written there, and the like of it, last.
        """
        ticket = self._library.graphopt_begin_transfer(self._lane, is_write, is_checked, offset, address, size_bytes)
        return int(ticket)

    def wait(self, ticket: int) -> None:
        """Wait until a transfer has ended; raises OffloadError where it failed."""
        error = self._library.graphopt_wait_for_transfer(self._lane, ticket)
        if error == _ENDS_EARLY:
            raise OffloadError("the file that values were moved to is shorter than what was written to it")
        if error == _IS_OTHER:
            raise OffloadError("what was read back is not what was written: somebody changed the file")
        if error:
            raise OffloadError(f"moving a value to or from its file failed: {os.strerror(error)} (errno {error})")

    def fails(self, fault: str, after: int = 0) -> None:
        """Let one transfer fail, behind so many others: "short", "no space", "broken", "cut" (to try out, no more)."""
        kinds = ("short", "no space", "broken", "cut")
        self._library.graphopt_fail_transfer(self._lane, after, kinds.index(fault) + 1)

    def close(self) -> None:
        """End behind what was begun."""
        lane, self._lane = self._lane, ctypes.c_void_p()
        if lane:
            self._library.graphopt_close_lane(lane)


@cache
def _library() -> Any:
    source = Path(__file__).with_name("lane.cpp")
    try:
        library = load_library(Recipe("offload-lane", (source,), ("-std=c++17", "-O2", "-pthread"), ("-pthread",)))
    except CompileError as error:
        raise UsageError(f"offload= needs a C++ compiler, once: {error}") from error
    address, whole, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    signatures = {
        "open_lane": (address, [flag, ctypes.c_double]),
        "close_lane": (None, [address]),
        "begin_transfer": (whole, [address, flag, flag, whole, address, whole]),
        "wait_for_transfer": (flag, [address, whole]),
        "fail_transfer": (None, [address, whole, flag]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"graphopt_{name}")
        function.restype, function.argtypes = result, arguments
    return library
