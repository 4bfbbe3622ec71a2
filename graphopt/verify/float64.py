"""A model's step in float64, with the draws of its own dtype: what eager and optimized are both judged against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_WIDE = {
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float64),
    **dict.fromkeys((torch.complex32, torch.complex64), torch.complex128),
}


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """Inside, parameters and buffers hold float64 copies, and so does all that is computed, casts included.

    Autocast leaves float64 alone. Random numbers are drawn as the model's parameters' dtype has them. The tensors
    themselves, with their gradients, are put back after.
    """
    tensors = [*model.parameters(), *model.buffers()]
    kept = [(tensor, tensor.data, tensor.grad) for tensor in tensors]
    dtypes = {tensor.dtype for tensor in model.parameters()} & set(_WIDE)
    drawn = next(iter(dtypes)) if len(dtypes) == 1 else torch.float32
    default = torch.get_default_dtype()
    try:
        for tensor in tensors:
            tensor.grad = None
            tensor.data = wide(tensor.data)
        torch.set_default_dtype(torch.float64)
        with _Float64(drawn):
            yield
    finally:
        torch.set_default_dtype(default)
        for tensor, data, grad in kept:
            tensor.grad = None
            tensor.data = data
            tensor.grad = grad


def wide(value: Any) -> Any:
    """A tensor of floats or complex numbers as float64 or complex128; anything else as it is."""
    return value.to(_WIDE[value.dtype]) if isinstance(value, torch.Tensor) and value.dtype in _WIDE else value


class _Float64(TorchDispatchMode):
    """Nothing that an op returns is narrower than float64; what draws, draws as `drawn` would."""

    def __init__(self, drawn: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn = drawn

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            return self._draw(func, args, kwargs)
        args, kwargs = pytree.tree_map(_wide_dtype, (args, kwargs))
        if not func.is_view and not func._schema.is_mutable:  # those must get the very tensor
            args, kwargs = pytree.tree_map(wide, (args, kwargs))
        return func(*args, **kwargs)

    def _draw(self, func: Any, args: Any, kwargs: Any) -> Any:
        narrow: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def to_drawn(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor) and leaf.dtype is torch.float64:
                return narrow.setdefault(id(leaf), (leaf, leaf.to(self.drawn)))[1]
            return self.drawn if leaf is torch.float64 else leaf

        given = pytree.tree_map(to_drawn, (args, kwargs))
        result = func(*given[0], **given[1])
        if func._schema.is_mutable:
            for whole, drawn in narrow.values():
                whole.copy_(drawn)
        own = {id(drawn): whole for whole, drawn in narrow.values()}
        return pytree.tree_map(lambda leaf: own.get(id(leaf), wide(leaf)), result)


def _wide_dtype(leaf: Any) -> Any:
    return _WIDE.get(leaf, leaf) if isinstance(leaf, torch.dtype) else leaf
