"""Every place where Dynamo ends a graph, or gives a function up and runs it as it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from traceback import FrameSummary
from typing import Any
from unittest import mock

import torch
from torch._dynamo.symbolic_convert import InstructionTranslatorBase

from graphopt.graph.nodes import is_own_file
from graphopt.problem.graph_break import GraphBreak

_RESUMED = re.compile(r"torch_dynamo_resume_in_(.*)_at_\d+")
#: How Dynamo begins the reason of a break behind which it captures nothing more of the function.
_GIVEN_UP = ("Failed to handle graph break gracefully", "Encountered graph break that we cannot resume from")
#: What it puts before the reason itself.
_HEADS = (*_GIVEN_UP, "Encountered graph break when attempting to trace")


@contextmanager
def noted_breaks(note: Callable[[GraphBreak], None]) -> Iterator[None]:
    """Inside, `note` is called for each break; for one in a function that was called, once for each caller too.

    Dynamo has no record of them that can be read: graphs tell why they ended, but where a function is given up there
    is none.
    """
    log_graph_break = InstructionTranslatorBase.log_graph_break

    def logged(frame: Any, code_options: Any, reason: str, exc: Any) -> None:
        if not exc.logged:
            users = getattr(exc, "real_stack", None) or torch._guards.TracingContext.extract_stack()
            note(_graph_break(frame.f_code, reason, users))
        log_graph_break(frame, code_options, reason, exc)

    with mock.patch.object(InstructionTranslatorBase, "log_graph_break", logged):
        yield


def nothing_captured(name: str, breaks: Sequence[GraphBreak]) -> str:
    """In words, with every cause."""
    causes = [f"\n  {each.reason}{f' at {each.source}' if each.source else ''}" for each in breaks]
    why = "".join(dict.fromkeys(causes)) or " its forward has no operator that torch.compile can capture"
    return f"nothing of {name} could be captured:{why}"


def _graph_break(code: Any, reason: str, frames: Sequence[FrameSummary]) -> GraphBreak:
    is_given_up = reason.startswith(_GIVEN_UP)
    text = reason.partition("\n\n")[2] if reason.startswith(_HEADS) else reason
    users = [frame for frame in frames if not is_own_file(frame.filename)]
    source = f"{users[-1].filename}:{users[-1].lineno} in {_own_name(users[-1].name)}" if users else ""
    given_up = f"{_own_name(code.co_name)} ({code.co_filename}:{code.co_firstlineno})" if is_given_up else ""
    return GraphBreak((text.strip() or reason).splitlines()[0], source, given_up)


def _own_name(function: str) -> str:
    """The user's name of a function that Dynamo goes on with behind a break."""
    found = _RESUMED.fullmatch(function)
    return found[1] if found else function
