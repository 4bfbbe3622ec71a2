"""What is measured of one training step, while it is run and afterwards."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from graphopt.base.units import format_bytes
from graphopt.report.data import OutsideShare, TakenStep, TrainedSteps
from graphopt.run.watch.outside_meter import OutsideMeter, StepSeconds

#: Steps that a history keeps.
KEPT_STEPS = 1024
#: The last steps that the share of seconds is the median of.
_STEPS_OF_SHARE = 16
NO_MESSAGES: Mapping[str, int] = MappingProxyType({})


class Place(Enum):
    """Where in a step."""

    # there is one of each; the hash of an Enum is made in Python, ten times a step
    __hash__ = object.__hash__

    GRAPHS = "in the planned graphs"
    FORWARD = "in the model's forward, outside of the planned graphs"
    LOSS = "between the model's forward and its backward, such as in a loss outside of the model"
    GATHER = "while FSDP2 gathered parameters"
    SCATTER = "while FSDP2 scattered gradients"
    BACKWARD = "in the backward, outside of the planned graphs"
    UPDATE = "while the optimizer updated the parameters"
    WHOLE = "somewhere before the update"


@dataclass(frozen=True)
class MeasuredStep:
    """One training step: its peak as planned, the peak measured, and where that was.

    `state_bytes` is the optimizer's state when it began, `held_bytes` what was held of the model's earlier outputs.
    `outside_bytes` is what the peak has of what was allocated since the step began, but not in planned graphs. Both
    this and `seconds` are None where they were not measured, as in a step that is measured as a whole.
    """

    predicted_bytes: int
    measured_bytes: int
    place: Place
    state_bytes: int
    held_bytes: int
    outside_bytes: int | None = None
    seconds: StepSeconds | None = None

    def __repr__(self) -> str:
        planned, measured = format_bytes(self.predicted_bytes), format_bytes(self.measured_bytes)
        return f"<MeasuredStep: {measured}, {planned} planned, {self.place.value}>"


class History(deque[MeasuredStep]):
    """The steps that were measured last, oldest first.

    In every step of a steady loop one is appended, which does nothing else: old ones go when another is added, or when
    they are asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._let_go = 0

    @property
    def total(self) -> int:
        """How many steps were ever measured."""
        return self._let_go + len(self)

    def adds(self, step: MeasuredStep) -> None:
        """A further step was measured."""
        self.append(step)
        while len(self) > KEPT_STEPS:
            self.popleft()
            self._let_go += 1

    def kept(self) -> tuple[MeasuredStep, ...]:
        """The last ones, as many as are kept."""
        return tuple(self)[-KEPT_STEPS:]

    def becomes(self, step: MeasuredStep) -> None:
        """More is known of the last one."""
        self[-1] = step


@dataclass(eq=False)
class StepInProgress:
    """The step that is being measured: what was there when it began, and the peaks since, by place."""

    start_bytes: int
    state_bytes: int
    held_bytes: int
    #: What is kept for the backward of what made the inputs.
    front_bytes: int
    live_bytes: int
    meter: OutsideMeter | None = None
    predicted_bytes: int = 0
    peaks: dict[Place, int] = field(default_factory=dict)
    #: The highest of them, and what it was when the step was put into the history; -1 where there is none yet.
    peak_bytes: int = -1
    recorded_bytes: int = -1
    place: Place = Place.GRAPHS
    outside_bytes: int | None = None
    returned_bytes: int = 0
    #: What was known at the end of its backward; and whether it is one forward, its backward and updates behind that,
    #: while nothing was planned or captured.
    backward_bytes: int = -1
    at_backward: MeasuredStep | None = None
    is_plain: bool = True
    #: In a model that FSDP2 shards: what was allocated when the last graph had run, gradients of earlier backwards, the
    #: messages that were there while the graph ran that has the highest peak, by kind, and whether no gradient goes on
    #: from it.
    settled_bytes: int = 0
    gradient_bytes: int = 0
    is_end: bool = False
    messages: Mapping[str, int] = field(default_factory=dict)
    in_backward: bool = False
    is_unexpected: bool = False
    has_other_tangents: bool = False
    #: What was told of as above the budget.
    judged_bytes: int = 0
    #: What a forward that raised has left, and what one before it had, which is there when this step begins.
    left_bytes: int = 0
    raised_bytes: int = 0

    @property
    def is_recorded(self) -> bool:
        """Whether the history has what was known of it at some time."""
        return self.recorded_bytes >= 0

    @property
    def is_unplanned(self) -> bool:
        """Whether no planned graph ran in it, so far."""
        return Place.GRAPHS not in self.peaks and Place.WHOLE not in self.peaks

    @property
    def named_bytes(self) -> int:
        """What was there when it began, as far as it is known by name."""
        return self.start_bytes + self.state_bytes + self.held_bytes + self.front_bytes

    def left_by_raised(self, last: StepInProgress | None) -> int:
        """What the forward of the step before has left, which raised an error, and is there still as this step begins.

        Whoever handles the error holds it: its traceback has the activations.
        """
        if last is None or not last.left_bytes:
            return 0
        more_bytes = (self.live_bytes - self.named_bytes) - (last.live_bytes - last.named_bytes) + last.raised_bytes
        return max(min(more_bytes, last.raised_bytes + last.left_bytes), 0)

    def moves(self, staying_bytes: int) -> None:
        """So much more is there from now on, of which no part is the step's: it is as if it had begun so."""
        self.live_bytes += staying_bytes
        self.peaks = {place: peak_bytes + staying_bytes for place, peak_bytes in self.peaks.items()}
        self.peak_bytes = max(self.peaks.values(), default=-1)
        for name in ("recorded_bytes", "backward_bytes"):
            if (known := getattr(self, name)) >= 0:
                setattr(self, name, known + staying_bytes)
        if self.meter is not None:
            self.meter.moves(staying_bytes)

    def measured(self) -> MeasuredStep:
        """As far as is known."""
        above_bytes = max(self.peak_bytes - self.live_bytes, 0)
        measured_bytes = self.named_bytes + self.raised_bytes + above_bytes
        known = (self.predicted_bytes, measured_bytes, self.place, self.state_bytes, self.held_bytes)
        return MeasuredStep(*known, self.outside_bytes, self.meter.seconds if self.meter is not None else None)

    def peaks_at(self, place: Place, peak_bytes: int, messages: Mapping[str, int] = NO_MESSAGES) -> None:
        """Since the last look, so many bytes were allocated at most, with these messages of FSDP2's there."""
        if peak_bytes <= self.peaks.get(place, -1):
            return
        self.peaks[place] = peak_bytes
        self.messages = messages or self.messages
        if peak_bytes <= self.peak_bytes:
            return
        self.peak_bytes, self.place = peak_bytes, place
        if self.meter is not None:
            in_graphs = place is Place.GRAPHS
            self.outside_bytes = self.meter.bytes_beside() if in_graphs else self.meter.bytes_outside(peak_bytes)


def excess_in_words(step: MeasuredStep, excess_bytes: int, budget_bytes: int) -> str:
    """What a step took, and by how much that is more than its budget without the reserve."""
    return (
        f"a training step took {format_bytes(step.measured_bytes)}, {excess_bytes:,} bytes more than the budget of "
        f"{format_bytes(budget_bytes)} leaves it; planned were {format_bytes(step.predicted_bytes)}."
    )


def trained_steps(history: Sequence[MeasuredStep], room_bytes: int) -> TrainedSteps | None:
    """What a report says of measured steps, which have so many bytes; None where there are none."""
    peaks = [step.measured_bytes for step in history]
    if not peaks:
        return None
    return TrainedSteps(len(peaks), sum(peak > room_bytes for peak in peaks), peaks[-1], max(peaks))


def taken_steps(history: Sequence[MeasuredStep]) -> tuple[TakenStep, ...]:
    """Measured steps as a report has them."""
    return tuple(TakenStep(step.predicted_bytes, step.measured_bytes, step.place.value) for step in history)


def outside_share(history: Sequence[MeasuredStep]) -> OutsideShare | None:
    """What a report says of the last steps outside of planned graphs; None where that was not measured."""
    seconds = [step.seconds for step in history if step.seconds is not None][-_STEPS_OF_SHARE:]
    measured = [step for step in history if step.outside_bytes is not None]
    if not measured:
        return None
    shares = [1 - each.in_graphs / each.whole for each in seconds]
    last = measured[-1]
    return OutsideShare(
        statistics.median(shares) if shares else None, last.outside_bytes, last.measured_bytes, len(measured)
    )
