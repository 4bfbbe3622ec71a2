"""Steps that are measured as a whole: they begin as others did that were measured place by place, and were alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

from graphopt.device.peak_window import CpuWindow
from graphopt.run.graphs.call_key import Shapes
from graphopt.run.watch.known_memory import StartOfStep
from graphopt.run.watch.measured_step import History, MeasuredStep, Place, StepInProgress

#: Steps with the same signs that are measured as a whole, one after another.
_MOST_IN_A_ROW = 63
#: Signs that are kept, such as those of batches of several lengths.
_MOST_KNOWN = 64


#: What is quickly told of a step when it begins: the shapes of its inputs, bytes that are allocated, gradients that are
#: there, and bytes of what is around the model. A plain tuple, as it is made in every step. That inputs are parts of
#: other tensors, of other sizes, is not told by it.
Signs = tuple[Shapes, int, int, int]


@dataclass(eq=False, slots=True)
class Likeness:
    """What steps with the same signs were like; they are known to be alike where two were.

    `backward_bytes` is what the allocator counted at most up to the end of the backward, `peak_bytes` the same with the
    update; `at_backward` and `measured` are what the history has of such a step at these times.
    """

    start: StartOfStep
    live_bytes: int
    backward_bytes: int
    peak_bytes: int
    at_backward: MeasuredStep
    measured: MeasuredStep
    is_alike: bool = False

    def is_like(self, other: Likeness) -> bool:
        """Whether both took the same, at the same places."""
        one, two = ((e.start, e.backward_bytes, e.at_backward, e.measured) for e in (self, other))
        return one == two

    def measured_at(self, peak_bytes: int) -> MeasuredStep:
        """The same with that peak, which is in the update."""
        if peak_bytes == self.peak_bytes:
            return self.measured
        return replace(self.measured, measured_bytes=self.measured.measured_bytes + peak_bytes - self.peak_bytes)


@dataclass(eq=False, slots=True)
class WholeStep:
    """A step that is measured as a whole, one after another with the same signs.

    `peak_bytes` is the most that was counted, as far as was looked; -1 where that was not yet. `is_as_expected` tells
    that it has come to its end, and took as much as those before it.

    Asking autograd to tell when a backward has ended is a good part of what a step costs. Where no more than in the
    step was counted between the planned graph's backward and the update, the step is put into the history when that
    graph has run (`is_early`), and what was counted behind it is looked at when the update begins.
    """

    like: Likeness
    window: CpuWindow
    predicted_bytes: int
    peak_bytes: int = -1
    has_run: bool = False
    has_returned: bool = False
    in_backward: bool = False
    is_recorded: bool = False
    is_as_expected: bool = False
    is_early: bool = False
    has_updated: bool = False
    #: Whether no more was counted behind the backward than in the step, and whether more ever was.
    is_quiet: bool = False
    is_noisy: bool = False
    #: Steps in a row that it stood for.
    times: int = 0

    def looks(self) -> None:
        """What was counted up to now is the step's."""
        self.peak_bytes = max(self.window.peak_bytes(), self.peak_bytes)

    def backward_ends(self, history: History) -> bool:
        """Put it into the history; False where it took something else up to here than those before it."""
        like = self.like
        self.peak_bytes = peak_bytes = self.window.peak_bytes()
        if peak_bytes != like.backward_bytes:
            return False
        history.append(like.at_backward)
        self.is_recorded, self.is_as_expected, self.in_backward = True, peak_bytes == like.peak_bytes, False
        return True

    def rest_ends(self) -> MeasuredStep | None:
        """An update begins, or the step ends without one: look at what was counted since the backward.

        What the step took if that was in it, where more was counted than in all of it, and nobody looked between them.
        """
        peak_bytes, has_updated, self.has_updated = self.window.peak_bytes(), self.has_updated, True
        if peak_bytes <= self.peak_bytes:
            self.is_quiet = not self.is_noisy
            return None
        self.window.take()
        if has_updated:
            return None
        self.is_quiet, self.is_noisy = False, True
        return self.like.measured_at(peak_bytes) if self.is_early else None

    def update_ends(self, history: History) -> bool:
        """What was counted since the update began is the step's; False where that is more than ever before."""
        peak_bytes, like = self.window.peak_bytes(), self.like
        if self.peak_bytes < peak_bytes <= like.peak_bytes:
            self.peak_bytes, self.is_as_expected = peak_bytes, peak_bytes == like.peak_bytes
            history.becomes(like.measured_at(peak_bytes))
        return peak_bytes <= self.peak_bytes

    def by_place(self, place: Place) -> StepInProgress:
        """The same, to go on with it place by place; the peak of what has run was there."""
        like = self.like
        like.is_alike = False
        step = StepInProgress(*like.start, like.live_bytes, is_plain=False, in_backward=self.in_backward)
        if self.has_returned:
            step.predicted_bytes = self.predicted_bytes
        if self.is_recorded:
            step.recorded_bytes = self.peak_bytes
        step.peaks_at(place, self.peak_bytes)
        return step


class Steady:
    """What is known of steps by their signs."""

    def __init__(self, window: CpuWindow) -> None:
        self._window = window
        self._known: dict[Signs, WholeStep] = {}
        self._signs: Signs | None = None

    def begins(self, signs: Signs) -> WholeStep | None:
        """A step begins so; None where it is to be measured place by place, as now and then each is."""
        self._signs = signs
        whole = self._known.get(signs)
        if whole is None or not whole.like.is_alike:
            return None
        whole.times += 1
        if whole.times > _MOST_IN_A_ROW:
            whole.times = 0
            return None
        whole.peak_bytes = -1
        whole.has_run = whole.has_returned = whole.in_backward = whole.is_recorded = whole.is_as_expected = False
        whole.is_early = whole.has_updated = False
        return whole

    def ended(self, step: StepInProgress, measured: MeasuredStep) -> None:
        """The step that began last was measured place by place."""
        signs, self._signs = self._signs, None
        if signs is None:
            return
        before = self._known.pop(signs, None)
        if step.at_backward is None or not step.is_plain or step.judged_bytes:
            return
        start = StartOfStep(step.start_bytes, step.state_bytes, step.held_bytes, step.front_bytes)
        at_backward = replace(step.at_backward, outside_bytes=None, seconds=None)
        measured = replace(measured, outside_bytes=None, seconds=None)
        like = Likeness(start, step.live_bytes, step.backward_bytes, step.peak_bytes, at_backward, measured)
        like.is_alike = before is not None and before.like.is_like(like)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        is_noisy = before is not None and before.is_noisy
        self._known[signs] = WholeStep(like, self._window, measured.predicted_bytes, is_noisy=is_noisy)

    def forget(self) -> None:
        """Something is planned anew."""
        self._known.clear()
