"""The peak of real training steps, compared with the budget."""

from __future__ import annotations

import logging
import warnings
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import torch

from graphopt.device.peak_window import peak_window
from graphopt.device.storages import unique_storage_bytes
from graphopt.run.watch.known_memory import KnownMemory
from graphopt.run.watch.measured_step import KEPT_STEPS, MeasuredStep, Place, excess_in_words
from graphopt.step.memory import StepMemory

logger = logging.getLogger("graphopt")

T = TypeVar("T")


class StepWatch:
    """Measures steps of one model; `history` are those measured last. An excess is logged, the first one a warning.

    A step's plan is not corrected: all of a step is in its graph, and what others do beside it is not.
    """

    def __init__(self, memory: StepMemory) -> None:
        self.history: deque[MeasuredStep] = deque(maxlen=KEPT_STEPS)
        self._memory = memory
        self._known = KnownMemory(memory.model, memory.device)
        self._known.updates(memory.view.optimizer)
        self._window = peak_window(memory.device)
        self._told = False

    def measured(self, batch: list[torch.Tensor], run: Callable[[], T]) -> T:
        """Run a step that is planned already, and measure it."""
        window = self._window
        if window is None:
            return run()
        live_bytes = window.live_bytes()
        start_bytes, state_bytes = (live_bytes, 0) if self._memory.device.type == "cuda" else self._there(batch)
        window.take()
        result = run()
        peak_bytes = start_bytes + state_bytes + max(window.take() - live_bytes, 0)
        step = MeasuredStep(self._memory.highest().peak_bytes, peak_bytes, Place.GRAPHS, state_bytes, 0)
        self.history.append(step)
        excess_bytes = peak_bytes + self._memory.reserve_bytes - self._memory.budget_bytes
        if excess_bytes > 0:
            self._tell(step, excess_bytes)
        return result

    def _there(self, batch: list[torch.Tensor]) -> tuple[int, int]:
        """Bytes by name when a step begins, and of these the optimizer's state."""
        memory = self._memory
        state_bytes = self._known.state_bytes()
        own = (*memory.view.masters.values(), *memory.view.unpublished_state, *memory.held(), *batch)
        return self._known.model_bytes() + unique_storage_bytes(own, memory.device), state_bytes

    def _tell(self, step: MeasuredStep, excess_bytes: int) -> None:
        message = (
            f"{excess_in_words(step, excess_bytes, self._memory.budget_bytes)} A reserve of that much keeps the next "
            "step inside: train_step(..., reserve=...)."
        )
        logger.warning("%s", message)
        if not self._told:
            self._told = True
            warnings.warn(f"graphopt: {message}", stacklevel=5)
