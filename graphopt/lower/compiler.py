"""Which kernels run a plan. To know that takes none of Inductor, which takes a second to import."""

from __future__ import annotations

from typing import Literal, get_args

from graphopt.base.errors import UsageError

#: Eager's own kernels, op by op; or those that Inductor makes of the emitted graphs.
Compiler = Literal["eager", "inductor"]
#: Plans that are compiled until the kernels of one fit; most fit at once, and each takes as long as torch.compile.
MOST_ROUNDS = 4


def check_compiler(compiler: object) -> None:
    """Raise UsageError where it is none of `Compiler`."""
    if compiler not in get_args(Compiler):
        raise UsageError(f"compiler: expected 'eager' or 'inductor', got {compiler!r}")
