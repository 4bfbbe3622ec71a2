"""autograd Functions that users write, where Dynamo's way to capture their backward fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch._dynamo._trace_wrapped_higher_order_op as dynamos


@contextmanager
def users_functions() -> Iterator[None]:
    """Let Dynamo capture a backward that asks for strides, of a Function of whose outputs some are None.

    It then makes all gradients contiguous first, and stumbles over the one of such an output, which is None too.
    """
    with mock.patch.object(dynamos, "autograd_function_backward_rewritten", _of_contiguous_gradients):
        yield


def _of_contiguous_gradients(backward: Callable[..., Any]) -> Callable[..., Any]:
    def contiguous(ctx: Any, *gradients: Any) -> Any:
        return backward(ctx, *[None if each is None else each.contiguous() for each in gradients])

    return contiguous
