"""How an op of `torch.ops.graphopt` is defined, and which kernels it runs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from graphopt.kernels.build import own_cpu_kernels, own_cuda_kernels

_LIBRARY = torch.library.Library("graphopt", "FRAGMENT")


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define one op for every device; gradients do not flow through any of them."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, torch.no_grad()(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"graphopt::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.graphopt, name).default


def no_result(*_: Any, **__: Any) -> None:
    """What an op that only writes in place gives."""


def fitting(stock: Callable[..., Any], own_cpu: ModuleType, own_cuda: str) -> Callable[..., Any]:
    """The kernels that were chosen, for the device of the first argument; `stock`, where there are no own ones.

    Own ones have the stock one's name; those of CUDA are in the module named `own_cuda`, loaded only there.
    """

    def run(first: Tensor | list[Tensor], /, *arguments: Any, **options: Any) -> Any:
        some = first if isinstance(first, Tensor) else first[0] if first else torch.empty(0)
        return getattr(_own_kernels(some.device, own_cpu, own_cuda), stock.__name__, stock)(
            first, *arguments, **options
        )

    return run


def _own_kernels(device: torch.device, own_cpu: ModuleType, own_cuda: str) -> ModuleType | None:
    if own_cpu_kernels(device):
        return own_cpu
    return import_module(own_cuda) if own_cuda_kernels(device) else None
