"""Request: what the user asked of `optimize()`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist

from graphopt.base.errors import UsageError
from graphopt.capture.changing_sizes import Dynamic, Sizes, sizes_of
from graphopt.cost_models.model_state import optimizer_bytes
from graphopt.plan.choice import Choice
from graphopt.run.model.part import Part

#: What becomes of a step that took more than its budget: it is told of and planned for, or raised.
OnExcess = Literal["correct", "raise"]


@dataclass(frozen=True)
class Request:
    """What the user asked for, in bytes; `group` are the processes that plan together, if others than it seems.

    With a `part` the budget is that of several modules, and it says what is planned for this one.
    """

    budget_bytes: int
    choice: Choice
    reserve_bytes: int = 0
    optimizer: torch.optim.Optimizer | None = None
    group: dist.ProcessGroup | None = None
    on_excess: OnExcess = "correct"
    #: Which sizes of inputs are symbols of what is captured: see `sizes_of`.
    dynamic: Dynamic = None
    part: Part | None = None

    def once_served(self, sizes: Sizes) -> Request:
        """A call was served: a kept plan of many sizes is this model's, and what it has not is planned from now on."""
        if not sizes.exactly:
            return self
        sizes.exactly = frozenset()
        return replace(self, choice=replace(self.choice, kept=None))

    def sizes(self) -> Sizes:
        """Which sizes captures take for symbols: those of a kept plan from the start."""
        # kernels are compiled for each shape by itself
        sizes = sizes_of(self.dynamic if self.choice.compiler == "eager" else False)
        sizes.exactly = frozenset(name for graph in (self.choice.kept or {}).values() for name in graph.sizes)
        return sizes

    @property
    def optimizer_bytes(self) -> int:
        """What the optimizer's state takes: real where it has stepped, else predicted."""
        return optimizer_bytes(self.optimizer) if self.optimizer is not None else 0


def check_on_excess(on_excess: object) -> None:
    """Raise UsageError where it is none of `OnExcess`."""
    if on_excess not in ("correct", "raise"):
        raise UsageError(f"on_excess: expected 'correct' or 'raise', got {on_excess!r}")
