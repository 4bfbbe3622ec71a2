"""Why a training step cannot be captured whole, in plain words, with the line and the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx
from torch._dynamo.exc import Unsupported, UserError
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.modules import batchnorm

from graphopt.base.errors import CaptureError
from graphopt.capture.noted_breaks import in_own_words, in_users_code
from graphopt.graph.nodes import source_line

#: How PyTorch calls what only a run can tell.
_OF_DATA = "data-dependent expression"
_OF_DATA_IN_WORDS = (
    "it computes with a number or a shape that a tensor gives (`.item()`, `int(tensor)`, `nonzero()`), which is known "
    "only when the step runs"
)
_MOMENTUM = "; nn.BatchNorm with momentum=None does, so give it a momentum"


def not_whole(where: str, reason: str) -> CaptureError:
    """The error for a step that cannot be captured whole, at a line where that is known ("" where not)."""
    at = f" at {where}" if where else ""
    return CaptureError(
        f"torch.compile cannot capture this training step whole{at}: {reason}. Mend that, or use "
        "graphopt.optimize(), which divides the budget over the pieces of a model that breaks"
    )


def as_not_whole(error: Unsupported | UserError) -> CaptureError | None:
    """The same for what Dynamo raised while it captured a step; None where that says something else."""
    where = in_users_code(getattr(error, "real_stack", None) or ())
    if _OF_DATA in str(error):
        return not_whole(where, _of_data(where))
    return not_whole(where, in_own_words(str(error)).removesuffix(".")) if isinstance(error, Unsupported) else None


@contextmanager
def whole_but_for_data(module: fx.GraphModule) -> Iterator[None]:
    """Inside, a graph of Dynamo's is captured and planned: what only a run can tell of it is a CaptureError."""
    try:
        yield
    except GuardOnDataDependentSymNode as error:
        given = (node for node in module.graph.nodes if _is_of_data(node.meta.get("example_value")))
        where = next((line for node in given if (line := source_line(node))), "")
        raise not_whole(where, _of_data(where)) from error


def _is_of_data(value: object) -> bool:
    symbols = (torch.SymInt, torch.SymFloat, torch.SymBool)
    numbers = (value,) if isinstance(value, symbols) else value.shape if isinstance(value, torch.Tensor) else ()
    return any(isinstance(number, symbols) and not number.node.has_hint() for number in numbers)


def _of_data(where: str) -> str:
    return _OF_DATA_IN_WORDS + (_MOMENTUM if where.startswith(str(batchnorm.__file__)) else "")
