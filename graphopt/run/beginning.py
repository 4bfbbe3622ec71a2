"""The model as it was when a call of it began, which may have to begin anew."""

from __future__ import annotations

from dataclasses import replace
from types import CodeType
from typing import Any

from torch import nn
from torch._C._dynamo.eval_frame import reset_code
from torch.utils._python_dispatch import _disable_current_modes

from graphopt.device.snapshot import State, python_generators, snapshot


class Beginning:
    """What is kept of a model while it is called: all of it, or as little as can have changed by then."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before: State | None = None
        self._generators: tuple[Any, Any] | None = None
        self._inputs: object = ()
        self._captured: list[CodeType] = []

    def of_call(self, inputs: object, has_breaks: bool) -> None:
        """A call begins. In a model without breaks nothing draws in Python before something is captured."""
        self._before, self._generators = None, python_generators() if has_breaks else None
        self._inputs = inputs

    def keep(self) -> int:
        """Keep all of the model: graphs of it may run before the call has to begin anew. The bytes that it takes."""
        self._before = snapshot(self._model, self._inputs)
        self._generators = self._before.python_generators
        return self._before.host_bytes

    def captures(self, code: CodeType) -> None:
        """A frame with this code is about to be captured."""
        self._captured.append(code)
        self._generators = self._generators or python_generators()

    def was_in_vain(self) -> bool:
        """An error came out of the call. Dynamo gives up for good what raised while it was captured: undo that.

        Whether there was anything to undo: then nothing of what was captured is left of these functions.
        """
        for code in self._captured:
            reset_code(code)
        return bool(self._captured)

    def breaks(self) -> int:
        """A graph ends. A model that was one graph has run nothing yet where it first does. The bytes that are kept."""
        if self._before is None:
            with _disable_current_modes():
                self._before = snapshot(self._model, self._inputs)
        return self._before.host_bytes

    def state(self) -> State:
        """The model before the call; what was not kept is as it was."""
        before = self._before or snapshot(self._model, self._inputs)
        return before if self._generators is None else replace(before, python_generators=self._generators)

    def forget(self) -> None:
        """The call has ended."""
        self._before = self._generators = None
        self._inputs = ()
        self._captured.clear()
