"""The planners' machine code, where it can be compiled."""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from pathlib import Path

from graphopt.base.compiler import Recipe, load_library
from graphopt.base.errors import CompileError

_SOURCES = Path(__file__).parent / "cpp"
#: Products and sums are not fused, so that machines of one kind plan alike whatever their compiler.
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off")


@cache
def library() -> ctypes.CDLL | None:
    """The machine code; None where it cannot be compiled, which is said once."""
    try:
        return load_library(Recipe("planners", tuple(sorted(_SOURCES.iterdir())), _FLAGS))
    except CompileError as error:
        warnings.warn(
            "the planners' inner loops cannot be compiled here, so planning takes many times as long, and walks and "
            f"local search are left out: {error}",
            stacklevel=2,
        )
        return None
