"""Which kernels run a plan."""

from __future__ import annotations

from typing import Literal, get_args

from graphopt.base.errors import UsageError

#: Eager's own kernels, op by op; or those that Inductor makes of the emitted graphs.
Compiler = Literal["eager", "inductor"]


def check_compiler(compiler: object) -> None:
    """Raise UsageError where it is none of `Compiler`."""
    if compiler not in get_args(Compiler):
        raise UsageError(f"compiler: expected 'eager' or 'inductor', got {compiler!r}")
