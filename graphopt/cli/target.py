"""What a command plans: a model, with inputs to try it on and what trains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """What a build function returned, on the device that was asked for; `dynamic` names its inputs' dimensions."""

    model: Any
    example_inputs: Any
    loss_fn: Callable[..., Any] | None
    optimizer: Any = None
    dynamic: Mapping[str, int] | None = None

    @property
    def inputs_of_forward(self) -> Any:
        """The example inputs without the loss function's target."""
        inputs = self.example_inputs
        if self.loss_fn is None or isinstance(inputs, Mapping):
            return inputs
        return inputs[:-1] if isinstance(inputs, tuple) else ()
