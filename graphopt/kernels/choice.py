"""Which kernels run: torch's own ops, ours, or ours where they can be built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from graphopt.base.errors import UsageError

Kernels = Literal["auto", "stock", "own"]
_chosen: Kernels = "auto"


@contextmanager
def use(kernels: Kernels) -> Iterator[None]:
    """Inside, `"stock"` runs torch's ops alone; `"own"` ours, and raises where they cannot be built;
    `"auto"`, the default, ours where they can be. Holds for the whole process, not for a thread. Any other word is a
    UsageError.
    """
    global _chosen
    if kernels not in get_args(Kernels):
        raise UsageError(f"kernels are one of {', '.join(get_args(Kernels))}, not {kernels!r}")
    before, _chosen = _chosen, kernels
    try:
        yield
    finally:
        _chosen = before


def chosen() -> Kernels:
    """What `use` set, `"auto"` outside of it."""
    return _chosen
