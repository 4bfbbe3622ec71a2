"""How an op of `torch.ops.graphopt` is defined, and which function runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from graphopt.kernels.build import own_cpu_kernels, own_cuda_kernels

_LIBRARY = torch.library.Library("graphopt", "FRAGMENT")


@dataclass(frozen=True)
class Implementations:
    """The functions that may run one op, all with the same arguments and results.

    `definition` says in torch's own ops what the op gives, and runs wherever there is no other. `cpu` calls compiled
    code. `cuda` launches Triton kernels and is a "module:function", imported by the first call on such a device.
    """

    definition: Callable[..., Any]
    cpu: Callable[..., Any] | None = None
    cuda: str | None = None


def implementation_for(device: torch.device, op: Implementations) -> Callable[..., Any]:
    """The function that runs an op on a device, by what `kernels.use` chose and what can be built here."""
    if op.cpu is not None and own_cpu_kernels(device):
        return op.cpu
    if op.cuda is not None and own_cuda_kernels(device):
        return _loaded(op.cuda)
    return op.definition


def dispatching(op: Implementations) -> Callable[..., Any]:
    """A function that runs an op by the implementation for the device of its first argument, a tensor or a list."""

    def run(first: Tensor | list[Tensor], /, *arguments: Any, **options: Any) -> Any:
        some = first if isinstance(first, Tensor) else first[0] if first else torch.empty(0)
        return implementation_for(some.device, op)(first, *arguments, **options)

    return run


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define `torch.ops.graphopt.*` by its schema, for every device, and give its overload.

    `fake` gives tensors like the results for such arguments, without their values. No gradient flows through the op.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, torch.no_grad()(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"graphopt::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.graphopt, name).default


def no_result(*_: Any, **__: Any) -> None:
    """What an op that only writes in place gives."""


@cache
def _loaded(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found
