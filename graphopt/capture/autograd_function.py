"""What the autograd Function is told that AOTAutograd makes for a graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch


@contextmanager
def plain_autograd_function() -> Iterator[None]:
    """Let the Function of a graph that is compiled inside take tangents as autograd has them, and be called again.

    - What is undefined comes as None, where autograd would make zeros of an output's size. AOTAutograd has no option
      for it; of a Function it is set on each call, in its forward.
    - Nothing that the forward saves is given away to the backward, so that `retain_graph=True` works: our backwards
      write into nothing that was saved.
    """
    before = torch.autograd.Function.__init_subclass__

    def made(cls: type[torch.autograd.Function], /, **options: Any) -> None:
        before(**options)
        if cls.__name__ != "CompiledFunction" or getattr(cls, "maybe_subclass_metadata", None) is not None:
            return
        forward = cls.forward

        def without_zeros(ctx: Any, *args: Any) -> Any:
            ctx.set_materialize_grads(False)
            return forward(ctx, *args)

        cls.forward = staticmethod(without_zeros)  # type: ignore[method-assign]
        cls.metadata.bw_donated_idxs = []  # type: ignore[attr-defined]

    with mock.patch.object(torch.autograd.Function, "__init_subclass__", classmethod(made)):
        yield
