"""What training steps took, for whoever keeps logs: TensorBoard, wandb, or a loop's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from graphopt.api.optimized import Optimized
from graphopt.base.errors import UsageError
from graphopt.run.watch.measured_step import MeasuredStep
from graphopt.step.train_step import TrainStep


class Logger(Protocol):
    """Anything that takes numbers by name; a run of wandb is one as it is."""

    def log(self, values: dict[str, float], step: int, /) -> object:
        """These are the values at that step."""


class ScalarWriter(Protocol):
    """What is used of TensorBoard's SummaryWriter."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, /) -> object:
        """This is a value at that step."""


@dataclass(frozen=True)
class TensorBoardLogger:
    """Gives values to a SummaryWriter, each under its own name."""

    writer: ScalarWriter

    def log(self, values: dict[str, float], step: int, /) -> None:
        """These are the values at that step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


class NewSteps:
    """The measured steps of a model from `optimize()`, or of a `train_step()`, each once.

    Raises UsageError for anything else.
    """

    def __init__(self, trained: nn.Module | TrainStep) -> None:
        self._measured = _measured(trained)
        self._seen = self._measured.measured_steps
        self._over = 0

    def taken(self) -> list[MeasuredStep]:
        """What was measured since the last time, oldest first, as far as the history still has it."""
        count = self._measured.measured_steps
        new, self._seen = count - self._seen, count
        history = self._measured.history
        return list(history[max(len(history) - new, 0) :])

    def values(self, steps: Sequence[MeasuredStep]) -> dict[str, float]:
        """What is logged of these steps together, one at least, of those that were taken: the highest of their peaks.

        `steps_over_budget` counts all that were logged so far; the plan behind each was corrected, or no plan helps.
        """
        room_bytes = _room_bytes(self._measured)
        self._over += sum(step.measured_bytes > room_bytes for step in steps)
        return {
            "graphopt/budget_bytes": room_bytes,
            "graphopt/predicted_bytes": max(step.predicted_bytes for step in steps),
            "graphopt/measured_bytes": max(step.measured_bytes for step in steps),
            "graphopt/steps_over_budget": self._over,
        }


class HistoryLog:
    """Gives a logger each step that was measured, from now on.

    `flush()` is called behind each training step, or behind some, 1,024 at most.
    """

    def __init__(self, trained: nn.Module | TrainStep, logger: Logger) -> None:
        self._new, self._logger, self._count = NewSteps(trained), logger, 0

    def flush(self) -> None:
        """Log what was measured since the last time, each step under its number."""
        for step in self._new.taken():
            self._logger.log(self._new.values([step]), self._count)
            self._count += 1


def _measured(trained: nn.Module | TrainStep) -> Optimized | TrainStep:
    found: Any = trained if isinstance(trained, TrainStep) else getattr(trained, "graphopt", None)
    if not isinstance(found, (Optimized, TrainStep)):
        raise UsageError(
            f"{type(trained).__name__} has no measured steps: give what graphopt.optimize() or train_step() returned"
        )
    return found


def _room_bytes(measured: Optimized | TrainStep) -> int:
    """The budget without the reserve, which nobody measures."""
    if isinstance(measured, TrainStep):
        return measured.plan.budget_bytes - measured.plan.resident_bytes.get("reserve", 0)
    return measured.session.request.budget_bytes - measured.session.request.reserve_bytes
