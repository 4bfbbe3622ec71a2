"""What the autograd Function is told that AOTAutograd makes for a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from graphopt.base.errors import CaptureError


def _only_once(ctx: Any, backward: Callable[[Any], Any], arguments: Sequence[Any]) -> Any:
    """A backward inside of `create_graph=True`: what it gives depends on all that the forward and it were given."""
    leaves = [getattr(node, "variable", None) for node, _ in ctx.next_functions]
    given = [each for each in (*arguments, *leaves, *ctx.of_inputs) if isinstance(each, Tensor) and each.requires_grad]
    return _FirstDerivative.apply(backward, *given)  # type: ignore[no-untyped-call]


def _empty_of(inputs: Sequence[Any]) -> list[Tensor]:
    """Of each input that was computed and has a gradient a tensor without elements that depends on it.

    AOTAutograd's Function saves tensors that depend on nothing: a second derivative would be zero, without a word.
    """
    computed = [each for each in inputs if isinstance(each, Tensor) and each.grad_fn is not None]
    with torch.enable_grad():
        return [(each if each.dim() else each.unsqueeze(0)).narrow(0, 0, 0).clone() for each in computed]


class _FirstDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backward: Callable[[Any], Any], *_given: Tensor) -> Any:
        """The first derivative."""
        return backward(ctx)

    @staticmethod
    def backward(_ctx: Any, *_gradients: Any) -> Any:
        """The second derivative."""
        raise CaptureError(
            "a gradient of an optimized model was differentiated once more (create_graph=True, as in gradient "
            "penalties): graphopt plans first derivatives, and knows no second ones. For this term call the model as "
            "it is, model.graphopt.restore(), and count its bytes with reserve="
        )


@contextmanager
def plain_autograd_function() -> Iterator[None]:
    """Let the Function of a graph that is compiled inside take tangents as autograd has them, and be called again.

    - What is undefined comes as None, where autograd would make zeros of an output's size. AOTAutograd has no option
      for it; of a Function it is set on each call, in its forward.
    - A second derivative is an error that says so.
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
            ctx.of_inputs = _empty_of(args)
            return forward(ctx, *args)

        cls.forward = staticmethod(without_zeros)  # type: ignore[method-assign]
        cls.metadata.bw_donated_idxs = []  # type: ignore[attr-defined]
        cls._double_backward = staticmethod(_only_once)  # type: ignore[attr-defined]

    with mock.patch.object(torch.autograd.Function, "__init_subclass__", classmethod(made)):
        yield
