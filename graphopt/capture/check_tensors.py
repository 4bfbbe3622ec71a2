"""Tensors that torch.compile does not capture, or that have no storage to count: refused by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.modules.module as of_all
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from graphopt.base.errors import CaptureError
from graphopt.graph.nodes import own_name

#: Whose operators are those of any tensor.
_PLAIN = (Tensor, nn.Parameter, nn.Buffer, nn.UninitializedParameter, nn.UninitializedBuffer)


def check_tensors(model: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Raise CaptureError for a parameter, a buffer or an input of which nothing can be planned.

    Sparse inputs and buffers are none of these: what reads them is not captured, but what does not may be.
    """
    for name, parameter in model.named_parameters():
        _check(f"the parameter {own_name(name)!r}", parameter, sparse_too=True)
    for name, buffer in model.named_buffers():
        _check(f"the buffer {own_name(name)!r}", buffer, sparse_too=False)
    check_inputs(inputs)


def check_inputs(inputs: Iterable[Tensor]) -> None:
    """The same for inputs alone."""
    for number, tensor in enumerate(inputs, start=1):
        _check(f"input {number}", tensor, sparse_too=False)


def obstacle_among(model: nn.Module, inputs: Iterable[Tensor]) -> str:
    """What in a model or its inputs no function that torch.compile captures may read, and the way out; or ""."""
    named = [(f"the buffer {name!r}", buffer) for name, buffer in model.named_buffers()]
    named += [(f"input {number}", tensor) for number, tensor in enumerate(inputs, start=1)]
    for name, tensor in named:
        if _is_sparse(tensor):
            return (
                f"{name} is sparse ({tensor.layout}). torch.compile captures no function that reads it; make it dense, "
                "or move what reads it out of the model"
            )
    if of_all._global_backward_hooks or of_all._global_backward_pre_hooks:
        return (
            "there is a backward hook for all modules (torch.nn.modules.module.register_module_full_backward_hook and "
            "the like), and torch.compile captures no call of a module that has one; remove it"
        )
    hooked = [f"{name or 'the model'!r}" for name, module in model.named_modules() if _has_backward_hooks(module)]
    if not hooked:
        return ""
    have = "has a backward hook" if len(hooked) == 1 else "have backward hooks"
    return (
        f"{', '.join(hooked)} {have}, and torch.compile captures no call of such a module, and no function that "
        "calls it in a loop, as nn.Sequential does. Hooks on tensors are captured: output.register_hook(...) in a "
        "forward hook"
    )


def _has_backward_hooks(module: nn.Module) -> bool:
    return bool(module._backward_hooks or module._backward_pre_hooks)


def _check(name: str, tensor: Tensor, *, sparse_too: bool) -> None:
    what, way_out = _obstacle(tensor, sparse_too)
    if what:
        raise CaptureError(f"{name} is {what}, whose steps cannot be captured and planned: {way_out}")


def _obstacle(tensor: Tensor, sparse_too: bool) -> tuple[str, str]:
    if tensor.is_nested:
        return "a nested tensor", "pad it (to_padded_tensor) before the model"
    if tensor.is_quantized:
        return "quantized", "give it dequantized"
    if tensor.is_mkldnn:
        return "in oneDNN's own layout", "give it dense (to_dense)"
    if _is_sparse(tensor) and sparse_too:
        return f"sparse ({tensor.layout})", "make it dense"
    if type(tensor) not in _PLAIN and not is_traceable_wrapper_subclass(tensor):
        plain = "give it as a plain tensor, tensor.as_subclass(torch.Tensor)"
        return f"a {type(tensor).__name__}, a subclass of torch.Tensor that torch.compile does not trace into", plain
    return "", ""


def _is_sparse(tensor: Tensor) -> bool:
    return tensor.layout not in (torch.strided, torch._mkldnn)  # type: ignore[attr-defined]
