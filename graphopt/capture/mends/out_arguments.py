"""`out=` with a tensor that is not contiguous, such as a part of a buffer: Dynamo would break the graph there.

AOTAutograd knows such a call as what it is, a result that is copied: so it is captured as that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch._dynamo.variables import TorchInGraphFunctionVariable

from graphopt.passes.joint.read_written_parts import EXACT, PRODUCTS, in_rows

_NAMES = frozenset(op._schema.name.removeprefix("aten::") for op in (*EXACT, *PRODUCTS))


@contextmanager
def out_arguments() -> Iterator[None]:
    """Let Dynamo capture `f(..., out=part)` as `part.copy_(f(...))` where it would break.

    Only where bits are eager's: of products, and of ops that round each element exactly, into rows of a buffer. Not
    where the result has another shape or type than `part`, nor where eager raises, as it needs gradients.
    """
    call_function = TorchInGraphFunctionVariable.call_function

    def called(function: Any, tx: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = getattr(function.value, "__name__", "")
        if not (set(kwargs) == {"out"} and name in _NAMES and _is_part(kwargs["out"])):
            return call_function(function, tx, args, kwargs)
        out = kwargs["out"]
        result = call_function(function, tx, args, {})
        if not _fits(result, out):
            return call_function(function, tx, args, kwargs)
        out.call_method(tx, "copy_", [result], {})
        return out

    with mock.patch.object(TorchInGraphFunctionVariable, "call_function", called):
        yield


def _is_part(out: Any) -> bool:
    """Whether Dynamo would break there, and rows of more than one element each lie in rows of a buffer."""
    example = _example(out)
    if example is None or example.is_complex() or torch._prims_common.is_contiguous_or_false(example):
        return False
    return min(example.shape, default=0) > 1 and example.stride(-1) == 1 and in_rows(example)


def _fits(result: Any, out: Any) -> bool:
    found, wanted = _example(result), _example(out)
    if found is None or wanted is None or found.requires_grad:
        return False
    return (found.shape, found.dtype, found.device) == (wanted.shape, wanted.dtype, wanted.device)


def _example(variable: Any) -> torch.Tensor | None:
    """The fake tensor of one of Dynamo's variables; None of all others."""
    if variable is None or not variable.is_tensor():
        return None
    example = variable.as_proxy().node.meta.get("example_value")
    return example if isinstance(example, torch.Tensor) else None
