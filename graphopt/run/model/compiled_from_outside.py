"""An optimized model that torch.compile captures from outside: it would run without its plan, so that is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch._dynamo.callback import callback_handler

from graphopt.base.errors import UsageError
from graphopt.capture.captures import locals_of_compile
from graphopt.capture.dynamo import is_called_by_graphopt


class _WithOurs(list[Callable[..., None]]):
    """Dynamo's callbacks, of which ours stays: `torch._dynamo.reset()` clears them."""

    def clear(self) -> None:
        super().clear()
        self.append(_refuse)


def refuse_compiles_from_outside() -> None:
    """From now on look, where Dynamo begins to capture a frame, whether an optimized model in training is in it.

    Nothing else is told of it: Dynamo takes a module apart by its `forward`, and never asks what stands in front.
    """
    if _refuse not in callback_handler.start_callbacks:
        callback_handler.start_callbacks = _WithOurs([*callback_handler.start_callbacks, _refuse])


def _refuse(*_: Any) -> None:
    if not torch.is_grad_enabled() or is_called_by_graphopt():
        return
    compiled = _frame_to_compile()
    if compiled is None:
        return
    for module in _modules_of(compiled):
        for name, each in module.named_modules():
            if each.training and hasattr(each.__dict__.get("graphopt"), "restore"):
                where = f" ({name!r} in {type(module).__name__})" if name else ""
                raise UsageError(
                    f"torch.compile would capture {type(each).__name__}{where}, which graphopt has optimized, and run "
                    "it without its plan: drop torch.compile, as optimize() compiles the model itself; to train it "
                    "without a plan, model.graphopt.restore()"
                )


def _frame_to_compile() -> FrameType | None:
    """The frame that Dynamo is about to capture; None where it compiles something else, such as a lazy backward."""
    found = (locals_of_compile() or {}).get("frame")
    return getattr(found, "frame", found)


def _modules_of(frame: FrameType) -> Iterator[nn.Module]:
    """What a frame names: among its arguments and locals, and the globals that its code reads."""
    code_globals = (frame.f_globals.get(name) for name in frame.f_code.co_names)
    return (each for each in (*frame.f_locals.values(), *code_globals) if isinstance(each, nn.Module))
