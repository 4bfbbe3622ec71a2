"""Bytes that a piece of work reads and writes, counted from the ops it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graphopt import kernels
from graphopt.kernels.tail import definition, definition_update

#: Seen through, op by op, where torch's own ops stand behind them.
STOCK = {kernels.gradient_norm: definition.gradient_norm, kernels.adam_: definition_update.adam_}
#: Arguments that an op writes without having read them, and those whose values it never looks at.
NOT_READ = {"copy_": {"self"}, "_foreach_copy_": {"self"}, "fill_": {"self"}, "adam_": {"copies"}}
SHAPE_ONLY = ("empty_like", "zeros_like", "ones_like", "new_empty", "new_zeros")


def moved_bytes(run: Callable[[], object], kind: str) -> int:
    """Bytes read and written by what `run` calls, with kernels of a `kind`; scratch inside an op is not seen."""
    counter = _Counter(kind)
    with kernels.use(kind), counter:  # type: ignore[arg-type]
        run()
    return counter.total_bytes


class _Counter(TorchDispatchMode):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.total_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.kind == "stock" and func in STOCK:
            with self:
                return STOCK[func](*args, **kwargs)
        result = func(*args, **kwargs)
        self.total_bytes += _op_bytes(func, args, kwargs, result)
        return result


def _op_bytes(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    schema, name = func._schema, func._schema.name.partition("::")[2]
    given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    written = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    if name.startswith("_fused_adam") and kwargs.get("grad_scale") is None:
        written -= {"grads"}
    if name == "adam_":
        written -= {"gradients"}
    is_view = not written and any(r.alias_info is not None for r in schema.returns)
    if is_view:
        return 0
    total = sum(_bytes(given.get(name)) for name in written)
    if name not in SHAPE_ONLY:
        total += sum(_bytes(value) for key, value in given.items() if key not in NOT_READ.get(name, ()))
    return total + (0 if written and not schema.returns else _bytes(result) if not written else 0)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size() if value.dtype != torch.bool else value.numel()
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0
