"""What Dynamo captured: which compiled code of it belongs to a graph, how that is dropped, and why it captured anew."""

from __future__ import annotations

import inspect
import logging
import re
import warnings
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.guards import DeletedGuardManagerWrapper
from torch._dynamo.utils import get_metrics_context
from torch._guards import CompileContext, CompileId

logger = logging.getLogger("graphopt")

#: Captures for one and the same cause after which it is warned of.
MANY = 8


@dataclass(frozen=True)
class Capture:
    """One compilation of Dynamo's: of which code, and which of those that there are of it."""

    code: weakref.ref[CodeType]
    compile_id: CompileId | None

    def drop(self) -> None:
        """Let Dynamo forget what it compiled; what it called is freed with it, and is captured anew where it comes."""
        code = self.code()
        for entry in _debug_get_cache_entry_list(code) if code is not None else ():
            # as Dynamo does itself where an object is gone that it had compiled for
            if entry.compile_id == self.compile_id and entry.guard_manager.extra_state is not None:
                reason = DeletedGuardManagerWrapper("graphopt dropped the least recently used plan")
                entry.guard_manager.extra_state.invalidate(entry, reason)


def this_capture() -> Capture:
    """Inside of a backend: the compilation that it is called for."""
    return Capture(weakref.ref(code_being_captured()), CompileContext.current_compile_id())


def code_being_captured() -> CodeType:
    """Inside of a backend: the code that Dynamo compiles."""
    known = locals_of_compile()
    assert known is not None, "torch's Dynamo no longer compiles in convert_frame._compile"
    code = known["code"]
    assert isinstance(code, CodeType)
    return code


def locals_of_compile() -> Mapping[str, Any] | None:
    """The local variables of Dynamo's function that compiles a frame; None where it compiles none."""
    frame = inspect.currentframe()
    while frame is not None and not (frame.f_code.co_name == "_compile" and "code" in frame.f_locals):
        frame = frame.f_back
    return frame.f_locals if frame is not None else None


def warn_of_limit() -> None:
    """Inside of a backend that others call: say so where torch.compile will capture no more, and run the rest as it is.

    `torch._dynamo.config.recompile_limit` is its user's, whom Dynamo tells only in its log, and after the fact.
    """
    captured = 1 + len(_debug_get_cache_entry_list(code_being_captured()))
    if captured == torch._dynamo.config.recompile_limit:
        warnings.warn(
            f"graphopt: torch.compile captured the model {captured} times, the last time as {cause_of_capture()}, and "
            "will capture it no more: calls for which none of these graphs is right run in eager mode, with no plan. "
            "Set torch._dynamo.config.recompile_limit higher, or use graphopt.optimize(), which has no such limit",
            stacklevel=2,
        )


class Recaptures:
    """Tells of every capture that follows an earlier one of the same code, and warns once of a frequent cause."""

    def __init__(self) -> None:
        self._times: Counter[str] = Counter()

    def tell(self) -> None:
        """Inside of a backend: log why this capture is made, where it is not the first."""
        cause = cause_of_capture()
        if not cause:
            return
        logger.info("captured anew, as %s", cause)
        kind = re.sub(r"-?\d+(\.\d*)?(e[-+]?\d+)?", "#", cause)
        self._times[kind] += 1
        if self._times[kind] == MANY:
            warnings.warn(
                f"graphopt: the model was captured and planned anew {MANY} times for one cause, the last time as "
                f"{cause}. Each takes as long as planning does. {_what_to_do(cause)}",
                stacklevel=2,
            )


def cause_of_capture() -> str:
    """Inside of a backend: which of Dynamo's guards failed, with the user's names; "" at the first capture."""
    reason = get_metrics_context()._metrics.get("recompile_reason")
    return in_users_words(reason) if reason else ""


def in_users_words(reason: str) -> str:
    """The guard that failed, as Dynamo gives it, with the names that the user knows."""
    text = re.sub(r"^\d+/\d+: ", "", reason.splitlines()[0]).partition("  # ")[0].strip()
    text = text.partition(". Guard failed on a parameter")[0]  # and what to set in Dynamo, where that means nothing
    text = re.sub(r"\._(?:modules|parameters|buffers)\['([^']+)'\]", r".\1", text)
    text = text.replace("fn.__self__", "model").removesuffix(".")
    text = re.sub(r"___check_type_id\((\S+), \d+\).*", r"\1 is of another type", text)
    text = re.sub(r"___check_obj_id\((\S+), \d+\).*", r"\1 is another object", text)
    return f"it is no longer so that {text}" if re.search(r" (==|!=|<|<=|>|>=) ", text) else text


def _what_to_do(cause: str) -> str:
    if "size mismatch" in cause:
        return "Pad to fewer shapes"
    if "sum(lengths)" in cause or "batch_sizes" in cause:
        return "Group sequences by length, so that as many rows come again, or train on padded ones"
    if "len(" in cause:
        return "What a forward appends to a list that the model keeps changes what was captured: do that in the loop"
    return (
        "A number that only enters arithmetic is an input of the plan, but one that a size or an `if` depends on is "
        "planned for value by value: keep it in a tensor, or let it take fewer values"
    )
