"""Training calls that run without a plan, in a model that has one: told of, once for each cause."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from graphopt.device.storages import tensors_in


class Unplanned:
    """Tells of calls of which nothing could be captured, and of backwards through calls in `eval()`."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._told_of_eval = False

    def ran(self, why: str) -> None:
        """Such a call has run, as it would in eager."""
        if why not in self._told:
            self._told.add(why)
            warnings.warn(
                f"graphopt: a training call ran without a plan, as {why}. Its bytes are measured, and told of where "
                "they are over the budget",
                stacklevel=2,
            )

    def evaluated(self, result: Any) -> Any:
        """The result of a call in `eval()`, with a warning when a backward comes to it."""
        if self._told_of_eval or not torch.is_grad_enabled():
            return result

        def comes(_gradients: object) -> None:
            if not self._told_of_eval:
                self._told_of_eval = True
                _say_that_eval_is_not_planned()

        for node in {tensor.grad_fn for tensor in tensors_in(result) if tensor.grad_fn is not None}:
            node.register_prehook(comes)
        return result


def _say_that_eval_is_not_planned() -> None:
    warnings.warn(
        "graphopt: a backward came to a call of the model in eval(), which runs as it is, with no plan and unmeasured. "
        "To train inside the budget with dropout or statistics switched off, call model.train(), and then eval() of "
        "the layers that it is for.",
        stacklevel=2,
    )
