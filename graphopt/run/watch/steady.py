"""Steps that are measured as a whole: they begin as others did that were measured place by place, and were alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from graphopt.run.graphs.call_key import Shapes
from graphopt.run.watch.known_memory import StartOfStep
from graphopt.run.watch.measured_step import MeasuredStep, StepInProgress

#: Steps with the same signs that are measured as a whole, one after another.
_MOST_IN_A_ROW = 63
#: Signs that are kept, such as those of batches of several lengths.
_MOST_KNOWN = 64


#: What is quickly told of a step when it begins: the shapes of its inputs, bytes that are allocated, gradients that are
#: there, and bytes of what is around the model. A plain tuple, as it is made in every step.
Signs = tuple[Shapes, int, int, int]


@dataclass(eq=False)
class Likeness:
    """What steps with the same signs were like; they are known to be alike where two were.

    `backward_bytes` is what the allocator counted at most up to the end of the backward, `peak_bytes` the same with the
    update; `at_backward` and `measured` are what the history has of such a step at these times.
    """

    signs: Signs
    start: StartOfStep
    live_bytes: int
    given_bytes: int
    backward_bytes: int
    peak_bytes: int
    at_backward: MeasuredStep
    measured: MeasuredStep
    is_alike: bool = False
    in_a_row: int = 0

    def is_like(self, other: Likeness) -> bool:
        """Whether both took the same, at the same places."""
        one, two = ((e.start, e.given_bytes, e.backward_bytes, e.at_backward, e.measured) for e in (self, other))
        return one == two

    def measured_at(self, peak_bytes: int) -> MeasuredStep:
        """The same with that peak, which is in the update."""
        if peak_bytes == self.peak_bytes:
            return self.measured
        return replace(self.measured, measured_bytes=self.measured.measured_bytes + peak_bytes - self.peak_bytes)


@dataclass(eq=False, slots=True)
class WholeStep:
    """A step that is measured as a whole; `peak_bytes` is the most that was counted, -1 before its forward ended."""

    like: Likeness
    peak_bytes: int = -1
    has_run: bool = False
    in_backward: bool = False
    is_recorded: bool = False

    @property
    def is_as_expected(self) -> bool:
        """Whether it has come to its end, and took as much as those before it."""
        return self.is_recorded and self.peak_bytes == self.like.peak_bytes

    def by_place(self) -> StepInProgress:
        """The same, to go on with it place by place."""
        like = self.like
        step = StepInProgress(*like.start, like.live_bytes, is_plain=False, in_backward=self.in_backward)
        if self.peak_bytes >= 0:
            step.predicted_bytes = like.measured.predicted_bytes
        if self.is_recorded:
            step.recorded_bytes = self.peak_bytes
        return step


class Steady:
    """What is known of steps by their signs."""

    def __init__(self) -> None:
        self._known: dict[Signs, Likeness] = {}
        self._given_bytes = 0

    def begins(self, signs: Signs, inputs: list[torch.Tensor]) -> WholeStep | None:
        """A step begins so; None where it is to be measured place by place, as now and then each is."""
        if not signs[0].has_storages:
            return None
        given_bytes = 0
        for tensor in inputs:
            given_bytes += tensor.untyped_storage().nbytes()
        self._given_bytes = given_bytes
        like = self._known.get(signs)
        if like is None or not like.is_alike or like.given_bytes != given_bytes:
            return None
        like.in_a_row += 1
        if like.in_a_row > _MOST_IN_A_ROW:
            like.in_a_row = 0
            return None
        return WholeStep(like)

    def ended(self, signs: Signs, step: StepInProgress, measured: MeasuredStep) -> None:
        """A step was measured place by place."""
        before = self._known.pop(signs, None)
        if step.at_backward is None or not step.is_plain or step.is_judged or not signs[0].has_storages:
            return
        start = StartOfStep(step.start_bytes, step.state_bytes, step.held_bytes, step.front_bytes)
        at_backward = replace(step.at_backward, outside_bytes=None, seconds=None)
        measured = replace(measured, outside_bytes=None, seconds=None)
        peaks = (step.live_bytes, self._given_bytes, step.backward_bytes, step.peak_bytes)
        known = Likeness(signs, start, *peaks, at_backward, measured)
        known.is_alike = before is not None and before.is_like(known)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[signs] = known

    def differs(self, like: Likeness) -> None:
        """A step was not like this."""
        self._known.pop(like.signs, None)

    def forget(self) -> None:
        """Something is planned anew."""
        self._known.clear()
