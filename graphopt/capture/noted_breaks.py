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
#: How the reason begins where a module has a full backward hook, and what is said instead.
_HOOKED = "Module-level backwards hooks require compiled autograd"
_HOOKED_IN_WORDS = "a module with a full backward hook is called, which torch.compile does not capture"
#: What it puts before the reason itself.
_HEADS = (*_GIVEN_UP, "Encountered graph break when attempting to trace")

#: Why a model that breaks is not planned, where its graphs were met and others came then.
ANOTHER_WAY = (
    "the model's forward took another way when it was run again with the same inputs and generators: it reads what "
    "changes outside of the model, such as a counter in a closure; make that an attribute"
)


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


def nothing_captured(name: str, breaks: Sequence[GraphBreak], obstacle: str) -> str:
    """Why there is no graph at all of a model of that name, with every cause and the way out.

    `obstacle` is what in it can be captured nowhere, or "".
    """
    if obstacle:
        return f"nothing of {name} could be captured: {obstacle}"
    causes = dict.fromkeys(f"\n  {_cause(each)}" for each in breaks)
    if not causes:
        return f"nothing of {name} could be captured: its forward has no operator that torch.compile can capture"
    return (
        f"nothing of {name} could be captured:{''.join(causes)}\n  Where a graph cannot be cut (in a "
        "loop, `try` or `with`), torch.compile runs the function as it is, and layers of torch.nn that it calls: move "
        "what breaks out of it, or the rest into a method of its own"
    )


def _cause(given: GraphBreak) -> str:
    if not given.given_up:
        return f"{given.reason}{f' at {given.source}' if given.source else ''}"
    function, place = given.given_up.partition(" (")[0], given.source.partition(" in ")[0]
    return f"{function} was given up{f' at {place}' if place else ''} ({given.reason})"


def in_own_words(reason: str) -> str:
    """Why Dynamo ends a graph, in a line."""
    text = reason.partition("\n\n")[2] if reason.startswith(_HEADS) else reason
    line = (text.strip() or reason).splitlines()[0]
    return _HOOKED_IN_WORDS if line.startswith(_HOOKED) else line


def in_users_code(frames: Sequence[FrameSummary]) -> str:
    """The innermost of the frames that is neither graphopt's own nor torch's call of a module; "" where none is."""
    call = torch.nn.modules.module.__file__
    users = [frame for frame in frames if not is_own_file(frame.filename) and frame.filename != call]
    return f"{users[-1].filename}:{users[-1].lineno} in {_own_name(users[-1].name)}" if users else ""


def _graph_break(code: Any, reason: str, frames: Sequence[FrameSummary]) -> GraphBreak:
    is_given_up = reason.startswith(_GIVEN_UP)
    given_up = f"{_own_name(code.co_name)} ({code.co_filename}:{code.co_firstlineno})" if is_given_up else ""
    return GraphBreak(in_own_words(reason), in_users_code(frames), given_up)


def _own_name(function: str) -> str:
    """The user's name of a function that Dynamo goes on with behind a break."""
    found = _RESUMED.fullmatch(function)
    return found[1] if found else function
