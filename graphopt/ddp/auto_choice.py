"""compress_ddp("auto"): which method each bucket travels with, judged by whole steps and not by messages alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from graphopt.compression.choose import Auto
from graphopt.compression.link import highest
from graphopt.compression.measured_choice import choose_methods
from graphopt.compression.methods import Compression
from graphopt.ddp.ddp_step import DdpStep
from graphopt.device.messages import device_of
from graphopt.device.ranks import Ranks

#: Of so many steps the median counts, as they are and with what was chosen: one evaluation between them is no matter.
TIMED_STEPS = 3

#: The names of the gradients of each bucket.
Buckets = tuple[tuple[str, ...], ...]


class AutoChoice:
    """What "auto" sends: everything as it is until DDP has its final buckets and `TIMED_STEPS` steps were timed.

    Then what should make the step shorter, for as many steps. Where these were no shorter in fact, everything as it
    is from there on. A step's seconds are those from the end of the backward before it to the end of its own, on the
    slowest rank. `reasons` say what was chosen and why; `is_settled` from when nothing changes any more.
    """

    def __init__(self, ranks: Ranks, auto: Auto) -> None:
        self._ranks, self._auto = ranks, auto
        self.reasons: tuple[str, ...] = ()
        self.is_settled = False
        self._buckets: Buckets = ()
        self._chosen: dict[tuple[str, ...], Compression | None] = {}
        self._times: list[float] = []
        self._seconds_as_is = 0.0

    def method_of(self, names: tuple[str, ...]) -> Compression | None:
        """How the bucket of the gradients of these names travels now."""
        return self._chosen.get(names)

    def finished(self, step: DdpStep, at_seconds: float) -> None:
        """Of each step, when its last gradient was there; all ranks call it after the same steps."""
        buckets = tuple(arrival.names for arrival in step.arrivals)
        if buckets != self._buckets:  # DDP makes them anew after its first step
            self._buckets, self._chosen, self._times, self.is_settled = buckets, {}, [], False
        if self.is_settled:
            return
        self._times.append(at_seconds)
        if len(self._times) <= TIMED_STEPS:
            return
        (seconds,) = highest(self._ranks, [_median(self._times)], device_of(self._ranks))
        if self._chosen:
            self._judge(seconds)
        else:
            self._choose(step, seconds)
        self._times = [time.monotonic()]  # what choosing takes is no part of a step

    def _choose(self, step: DdpStep, seconds: float) -> None:
        shapes = [one.shapes for one in step.arrivals]
        choice = choose_methods(self._ranks, self._auto, shapes, step.backward_seconds(), step_seconds=seconds)
        self._chosen = dict(zip(self._buckets, choice.methods, strict=True))
        self.reasons, self._seconds_as_is = choice.reasons, seconds
        self.is_settled = not any(choice.methods)

    def _judge(self, seconds: float) -> None:
        self.is_settled = True
        both = f"{1000 * seconds:,.1f} ms with it, {1000 * self._seconds_as_is:,.1f} ms without"
        if seconds < self._seconds_as_is:
            self.reasons += (f"steps took {both}",)
        else:
            self._chosen = {}
            self.reasons += (f"no compression after all: steps took {both}",)


def _median(times: Sequence[float]) -> float:
    return median(later - earlier for earlier, later in pairwise(times))
