"""The planners' machine code, where it can be compiled."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from graphopt.base.compiler import Recipe, load_library
from graphopt.base.errors import CompileError

_SOURCES = Path(__file__).parent / "cpp"
#: Sums and products as Python makes them: none fused, none folded by rules of the compiler's own.
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-builtin-pow")
_wanted = True


@contextmanager
def without_native() -> Iterator[None]:
    """Inside, the Python of the planners runs. Holds for the whole process, not for a thread."""
    global _wanted
    before, _wanted = _wanted, False
    try:
        yield
    finally:
        _wanted = before


def library() -> ctypes.CDLL | None:
    """The machine code; None where it cannot be compiled, which is said once, or is not wanted."""
    return _library() if _wanted else None


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return load_library(Recipe("planners", tuple(sorted(_SOURCES.iterdir())), _FLAGS))
    except CompileError as error:
        warnings.warn(
            f"the planners' inner loops cannot be compiled here, so planning takes several times as long: {error}",
            stacklevel=2,
        )
        return None
