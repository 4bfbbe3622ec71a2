"""The watch: the peak of real training steps, compared with the budget.

A step reaches from a forward of the model to the update of its parameters. It is measured from outside, by the
device's allocator; only what was there when it began is added up by name on a CPU, as the plan does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor, nn

from graphopt.device.peak_window import CpuWindow, CudaWindow
from graphopt.run.graphs.call_key import Shapes
from graphopt.run.graphs.gradients import Run
from graphopt.run.model.request import Request
from graphopt.run.watch.corrections import Corrections
from graphopt.run.watch.known_memory import KnownMemory, StartOfStep
from graphopt.run.watch.measured_step import NO_MESSAGES, History, Place, StepInProgress
from graphopt.run.watch.outside_meter import meter_of
from graphopt.run.watch.sharding import Sharding
from graphopt.run.watch.steady import Steady, WholeStep
from graphopt.run.watch.update_hook import heed_backward, heed_updates

_queue_callback = torch.autograd.Variable._execution_engine.queue_callback


class Watch:
    """Measures steps of one model: `history` are those measured last, `corrections` what they changed.

    `aside_bytes` are copies of the model's state while it is called, which are no part of a step.
    """

    def __init__(
        self,
        model: nn.Module,
        window: CpuWindow | CudaWindow,
        device: torch.device,
        request: Request,
        corrections: Corrections,
    ) -> None:
        self.corrections, self.aside_bytes, self._is_away = corrections, 0, False
        self.history = History()
        self._window, self._device, self.is_on_cuda = window, device, device.type == "cuda"
        self._counts_state, self._known = request.optimizer is None, KnownMemory(model, device)
        if request.optimizer is not None:
            self._known.updates(request.optimizer)
        #: What FSDP2 holds, where it shards the model.
        self.sharding: Sharding | None = None
        self._step: StepInProgress | None = None
        #: Set in place of the other while a step is measured as a whole.
        self._whole: WholeStep | None = None
        self._steady = Steady(window) if isinstance(window, CpuWindow) and request.on_excess != "raise" else None
        self._known.looks_for_optimizers = heed_updates(model, self)

    def begins(
        self, shapes: Shapes, inputs: list[Tensor], gradients: list[Tensor], held_bytes: int, is_behind: bool
    ) -> None:
        """A forward begins, with these gradients there, and what wraps the model holding so many bytes.

        Behind others that wait it goes on with their step.
        """
        if is_behind and self._goes_on():
            return
        if self.sharding is not None:
            state_bytes = self._known.state_bytes() if self.sharding.is_root else 0
            self._step = self.sharding.begins(self._live_bytes(), inputs, state_bytes)
            self._look(Place.GATHER)
            self._counts(state_bytes)
            return
        whole, last = self._whole, self._step
        if whole is None or not (whole.is_as_expected and whole.has_updated):
            self.ends()
        live_bytes = self._window.live_bytes() - self.aside_bytes
        if self._steady is not None:
            alike = self._steady.begins((shapes, live_bytes, len(gradients), held_bytes))
            is_alike = alike is not None and not self._known.has_other_state(alike.like.start.state_bytes)
            self._whole = alike if is_alike else None
            if self._whole is not None:
                self._window.take()
                return
        start = StartOfStep(live_bytes) if self.is_on_cuda else self._known.begins(inputs, gradients, held_bytes)
        self._counts(start.state_bytes)
        self._step = StepInProgress(*start, live_bytes, meter_of(live_bytes, self._device, len(self.history)))
        self._step.raised_bytes = 0 if self.is_on_cuda else self._step.left_by_raised(last)
        self._window.take()

    def _counts(self, state_bytes: int) -> None:
        if self._counts_state and not self.is_on_cuda:  # there all that is allocated is counted
            self.corrections.counts_state(state_bytes)

    def _goes_on(self) -> bool:
        """A further forward of the same step; False where there is none to go on with."""
        self._by_place()
        if self._step is None:
            return False
        self._step.is_plain = False
        self._look(Place.LOSS)
        return True

    def _by_place(self, place: Place = Place.WHOLE) -> None:
        """A step that is measured as a whole is not as it was expected: what comes of it is measured place by place."""
        if self._whole is not None:
            self._whole.looks()
            self._window.take()
            self._leave(self._whole, place)

    def _leave(self, whole: WholeStep, place: Place = Place.WHOLE) -> None:
        self._whole, self._step = None, whole.by_place(place)

    def is_unexpected(self) -> None:
        """The forward that begins came behind another one for the first time: the step was not planned as a whole."""
        if self._step is not None:
            self._step.is_unexpected = True

    def other_tangents_came(self) -> None:
        """A backward began that was not planned: gradients of other outputs came than its plan expects."""
        self._by_place()
        if self._step is not None:
            self._step.has_other_tangents = True

    @contextmanager
    def away(self) -> Iterator[None]:
        """Inside, a call is captured or planned: what that takes is no part of a step, and nor is what stays of it.

        What is held meanwhile and given back at the end, as generators' states are, changes nothing. The seconds of
        such a step are not a step's.
        """
        if self._is_away:
            yield
            return
        if self._whole is not None and not self._whole.is_recorded:
            self._by_place()
        step = self._step
        self._look(Place.BACKWARD if step is not None and step.in_backward else Place.FORWARD)
        before_bytes, self._is_away = self._live_bytes(), True
        try:
            yield
        finally:
            self._is_away = False
            self._window.take()
            if self._steady is not None:
                self._steady.forget()
            if step is not None:
                self._is_disturbed(step, self._live_bytes() - before_bytes)

    def _is_disturbed(self, step: StepInProgress, staying_bytes: int) -> None:
        """Something was captured or planned in it, of which so much stays."""
        step.is_plain = False
        if step.meter is not None:
            step.meter.is_disturbed()
        if self.sharding is not None:
            self.sharding.base_bytes += staying_bytes
            step.settled_bytes += staying_bytes
        elif not self.is_on_cuda:  # there all that is allocated counts
            step.moves(staying_bytes)

    def look_away(self) -> None:
        """What was allocated since the last look is no part of a step; nor is, if it has just begun, what is there."""
        self._window.take()
        if self._whole is not None and not self._whole.is_recorded:
            if self._whole.has_run:
                self._whole.looks()
            self._leave(self._whole)
        step = self._step
        if step is None or step.is_recorded:
            return
        step.is_plain = False
        if step.peaks or self.sharding is not None:
            return
        if not self.is_on_cuda:
            step.live_bytes = self._live_bytes()
        if step.meter is not None:
            step.meter.restarts(self._live_bytes())

    def forward_ends(self, predicted_bytes: int, result: Any) -> None:
        """The model returned; what its plan says of the step."""
        whole = self._whole
        if whole is not None:
            if predicted_bytes == whole.predicted_bytes:
                self._known.outputs.returned(result)
                whole.has_returned, whole.peak_bytes = True, whole.window.peak_bytes()
                return
            self._by_place(Place.WHOLE if predicted_bytes else Place.FORWARD)
        if (step := self._step) is None:
            return
        step.predicted_bytes = max(step.predicted_bytes, predicted_bytes)
        if not self.is_on_cuda and self.sharding is None:  # else nothing is added up by name
            self._known.outputs.returned(result)
        step.returned_bytes = self._live_bytes() - self._moved_bytes(step)
        if step.is_unplanned and self.sharding is None:
            heed_backward(result, WeakMethod(self._backward_begins), step)
        self._look(Place.FORWARD)

    def forward_raised(self) -> None:
        """The model raised an error: what it had allocated stays for as long as that is handled."""
        self._by_place()
        if self._step is not None:
            self._step.left_bytes = max(self._live_bytes() - self._step.live_bytes, 0)

    def ends(self) -> None:
        """What comes now is no part of a training step, or of another one."""
        whole, self._whole = self._whole, None
        if whole is not None and whole.is_recorded and not whole.has_updated:
            self.corrections.may_be_over(whole.rest_ends())
        if whole is not None and not whole.is_as_expected:
            self._leave(whole)
        step, self._step = self._step, None
        if step is None:
            return
        if step.peak_bytes > step.recorded_bytes:
            self._record(step)
        if self._steady is not None and step.is_recorded:
            self._steady.ended(step, self.history[-1])

    def around_forward(self, run: Run, args: list[Any]) -> Any:
        """Run a planned forward."""
        if self._whole is not None:
            self._whole.has_run = True
            return run(args)
        self._look(Place.FORWARD)
        return self._run_graph(run, args)

    def around_backward(self, run: Run, args: list[Any]) -> Any:
        """Run a planned backward."""
        whole = self._whole
        if whole is not None and not whole.is_recorded:
            is_first, whole.in_backward = not whole.in_backward, True
            result = run(args)
            if is_first:
                whole.is_early = whole.is_quiet and whole is self._whole and whole.backward_ends(self.history)
                if not whole.is_early:
                    _queue_callback(self._backward_ends)
            return result
        self._by_place()
        step = self._step
        if step is not None and self.sharding is not None:
            self._look(Place.GATHER)
        elif step is not None:
            self._backward_begins(step)
        return self._run_graph(run, args)

    def _backward_begins(self, step: StepInProgress) -> None:
        """A backward came to the model, or to a further graph of it."""
        if step is not self._step:
            return
        self._look(Place.BACKWARD if step.in_backward else Place.LOSS)
        if not step.in_backward:
            step.in_backward = True
            _queue_callback(self._backward_ends)

    def _run_graph(self, run: Run, args: list[Any]) -> Any:
        step, sharding = self._step, self.sharding
        meter = step.meter if step is not None else None
        if meter is not None:
            meter.enters(self._live_bytes())
        messages = sharding.messages() if sharding is not None else NO_MESSAGES
        result = run(args)
        self._look(Place.GRAPHS, messages)
        if step is not None and sharding is not None:
            step.settled_bytes = self._live_bytes()
        if meter is not None:
            meter.leaves(self._live_bytes())
        return result

    def updated_by(self, optimizer: torch.optim.Optimizer) -> None:
        """This one updates the model's parameters."""
        self._known.updates(optimizer)

    def update_begins(self) -> None:
        """An optimizer begins to update the model's parameters."""
        whole = self._whole
        if whole is None or not whole.is_recorded:
            self.look_away()
        elif whole.is_quiet and whole.window.peak_bytes() <= whole.peak_bytes:
            whole.has_updated = True
        else:
            self.corrections.may_be_over(whole.rest_ends())

    def update_ends(self) -> None:
        """The parameters are updated."""
        if (whole := self._whole) is not None:
            if whole.window.peak_bytes() <= whole.peak_bytes or whole.update_ends(self.history):
                return
            self._leave(whole)
        step, is_block = self._step, self.sharding is not None and not self.sharding.is_root
        if step is not None and step.is_recorded and not is_block:
            self._look(Place.UPDATE)
            if step.peak_bytes > step.recorded_bytes:
                self._record(step)

    def _backward_ends(self) -> None:
        if (whole := self._whole) is not None:
            if whole.backward_ends(self.history):
                return
            self._by_place()
        if (step := self._step) is not None:
            self._look(Place.BACKWARD)
            step.in_backward = False
            if step.meter is not None:
                step.meter.ends()
            self._record_backward(step)

    def _record_backward(self, step: StepInProgress) -> None:
        step.is_plain = step.is_plain and step.at_backward is None
        self._record(step)
        step.at_backward, step.backward_bytes = self.history[-1], step.peak_bytes
        self.corrections.ends_trial(self.history[-1], step)

    def _look(self, place: Place, messages: Mapping[str, int] = NO_MESSAGES) -> None:
        if (step := self._step) is not None:
            step.peaks_at(place, self._window.take() - self.aside_bytes - self._moved_bytes(step), messages)

    def _live_bytes(self) -> int:
        return self._window.live_bytes() - self.aside_bytes

    def _moved_bytes(self, step: StepInProgress) -> int:
        """What others have allocated since a block of a sharded model began its step, and still hold."""
        return self.sharding.base_bytes - step.live_bytes if self.sharding is not None else 0

    def _record(self, step: StepInProgress) -> None:
        """Put the step into the history, or what is known of it by now; say so where it is over the budget."""
        measured, put = step.measured(), self.history.becomes if step.is_recorded else self.history.adds
        put(measured)
        step.recorded_bytes = max(step.peak_bytes, 0)
        if self.corrections.is_over(measured, step):
            sharding = self.sharding
            held, of_block = (sharding.held_beside(step), sharding.of_block()) if sharding is not None else ({}, "")
            self.corrections.judge(measured, step, held, of_block)
