"""What of a step runs outside of the planned graphs: its seconds, and the bytes that it holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

#: Steps on CUDA whose seconds are measured: it has to be waited for at both ends of every graph.
_TIMED_STEPS = 4


@dataclass(frozen=True)
class StepSeconds:
    """Of one step: from the call of the model to the end of the backward, and of that in planned graphs."""

    whole: float
    in_graphs: float


class OutsideMeter:
    """Told when the planned graphs of a step begin and end, and what is allocated then."""

    def __init__(self, live_bytes: int, now: Callable[[], float]) -> None:
        self._now, self._graph_seconds, self._graph_bytes = now, 0.0, 0
        self._entered, self._whole_seconds, self._is_disturbed = (0.0, 0), 0.0, False
        self.restarts(live_bytes)

    def restarts(self, live_bytes: int) -> None:
        """The step begins only now."""
        self._began, self._start_bytes = self._now(), live_bytes

    def moves(self, staying_bytes: int) -> None:
        """So much was there when the step began, as it counts now."""
        self._start_bytes += staying_bytes

    def is_disturbed(self) -> None:
        """Something is captured or planned in it: there is no measure of this step's seconds."""
        self._is_disturbed = True

    def enters(self, live_bytes: int) -> None:
        """A planned graph begins."""
        self._entered = self._now(), live_bytes

    def leaves(self, live_bytes: int) -> None:
        """It has ended: what it allocated, and what it freed, is the plan's."""
        began, before_bytes = self._entered
        self._graph_seconds += self._now() - began
        self._graph_bytes += live_bytes - before_bytes

    def ends(self) -> None:
        """The step has ended, as far as is known."""
        self._whole_seconds = self._now() - self._began

    def bytes_outside(self, live_bytes: int) -> int:
        """What is allocated since the step began, and not by the planned graphs; outside of them that is."""
        return max(live_bytes - self._start_bytes - self._graph_bytes, 0)

    def bytes_beside(self) -> int:
        """The same for when the last planned graph began."""
        return self.bytes_outside(self._entered[1])

    @property
    def seconds(self) -> StepSeconds | None:
        """Of the step; None where it was disturbed, or has not ended."""
        if self._is_disturbed or not self._whole_seconds:
            return None
        return StepSeconds(self._whole_seconds, self._graph_seconds)


def clock_of(device: torch.device) -> Callable[[], float]:
    """A clock for what runs on a device: on CUDA it waits for all that was launched."""
    if device.type != "cuda":
        return time.perf_counter

    def synchronized() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronized


def meter_of(live_bytes: int, device: torch.device, steps: int) -> OutsideMeter | None:
    """For a step that begins behind so many others; None where it is not to be timed."""
    is_timed = device.type != "cuda" or steps < _TIMED_STEPS
    return OutsideMeter(live_bytes, clock_of(device)) if is_timed else None
