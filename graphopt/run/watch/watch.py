"""The watch: the peak of real training steps, compared with the budget.

A step reaches from a forward of the model to the update of its parameters. It is measured from outside, by the
device's allocator; only what was there when it began is added up by name on a CPU, as the plan does.
"""

from __future__ import annotations

import logging
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from weakref import WeakMethod

import torch
from torch import nn

from graphopt.base.errors import BudgetError
from graphopt.device.peak_window import CpuWindow, CudaWindow
from graphopt.device.storages import unique_storage_bytes
from graphopt.run.graphs.gradients import Run, gradient_bytes
from graphopt.run.model.request import Request
from graphopt.run.model.wrapping import is_sharded
from graphopt.run.watch.behind_inputs import bytes_behind
from graphopt.run.watch.causes import (
    FRONT,
    HELD,
    LASTING,
    LOSS,
    ONLY_TOLD,
    STATE,
    above_plan,
    cause_of,
)
from graphopt.run.watch.known_memory import KnownMemory, with_storage
from graphopt.run.watch.measured_step import KEPT_STEPS, MeasuredStep, Place, StepInProgress, excess_in_words
from graphopt.run.watch.outside_meter import OutsideMeter, clock_of
from graphopt.run.watch.sharding import Sharding, heed_sharding
from graphopt.run.watch.update_hook import heed_backward, heed_updates

logger = logging.getLogger("graphopt")

#: Steps on CUDA whose seconds are measured: it has to be waited for at both ends of every graph.
_TIMED_STEPS = 4
#: Corrections for one cause after which it is only told of: what grows at every step cannot be planned for.
_MOST_CORRECTIONS = 4


class Watch:
    """Measures steps of one model. `corrected` is called where `extra_bytes` or `loss_bytes` have changed.

    `plans_loss` tells whether a plan can have a loss in it: where the model is one graph.
    `history` are the steps measured last. `extra_bytes` says what is to be counted beside the plan from now on, by
    kind; `loss_bytes` what is to be counted between the model's forward and its backward, beside what the plan holds.
    `aside_bytes` are copies of the model's state while it is called, which are no part of a step.
    """

    def __init__(
        self,
        model: nn.Module,
        window: CpuWindow | CudaWindow,
        device: torch.device,
        request: Request,
        corrected: Callable[[], None],
        plans_loss: Callable[[], bool],
    ) -> None:
        self.extra_bytes: dict[str, int] = {}
        self.loss_bytes = self.aside_bytes = 0
        self.history: deque[MeasuredStep] = deque(maxlen=KEPT_STEPS)
        self._window, self._device, self.is_on_cuda = window, device, device.type == "cuda"
        self._request, self._corrected, self._plans_loss = request, corrected, plans_loss
        self._known = KnownMemory(model, device)
        if request.optimizer is not None:
            self._known.updates(request.optimizer)
        #: What FSDP2 holds, where it shards the model.
        self.sharding = Sharding(model, device) if is_sharded(model) else None
        if self.sharding is not None:
            heed_sharding(model, self)
        self._step: StepInProgress | None = None
        self._told: dict[str, int] = {}
        self._is_on_trial = self._is_confirmed = False
        self._tried_bytes = 0
        heed_updates(model, self)

    def begins(
        self, inputs: list[torch.Tensor], gradients: list[torch.Tensor], held_bytes: int, is_behind: bool
    ) -> None:
        """A forward begins, with these gradients there, and what wraps the model holding so many bytes.

        Behind others that wait it goes on with their step.
        """
        if is_behind and self._step is not None:
            self._look(Place.LOSS)
            return
        if self.sharding is not None:
            self._begins_sharded(self.sharding, inputs)
            return
        self.ends()
        live_bytes = self._live_bytes()
        self._step = StepInProgress(live_bytes, 0, 0, live_bytes, self._meter(live_bytes))
        if self._device.type != "cuda":
            given_bytes = unique_storage_bytes(with_storage(inputs), self._device)
            self._step.start_bytes = self._known.model_bytes() + given_bytes + held_bytes
            self._step.start_bytes += gradient_bytes(gradients, self._device)
            self._step.state_bytes = self._known.state_bytes()
            self._step.held_bytes = self._known.held_output_bytes()
            self._step.front_bytes = bytes_behind(inputs, self._device)
        self.look_away()

    def arrives(self) -> None:
        """The model is called, and FSDP2 gathers its parameters first."""
        self.ends()
        self._window.take()
        if self.sharding is not None:
            self.sharding.arrives(self._live_bytes())

    def departs(self) -> None:
        """The model was called, and what FSDP2 gathered is freed."""
        self._look(Place.FORWARD)
        if self._step is not None and self.sharding is not None:
            self.sharding.departs(self._live_bytes())

    def gradient_arrives(self, gradient: torch.Tensor) -> None:
        """A backward begins, and FSDP2 gathers the parameters first."""
        step, sharding = self._step, self.sharding
        if step is None or sharding is None or step.is_recorded:
            return
        if not sharding.is_root:
            if not step.in_backward:
                self._window.take()
                sharding.returns(self._live_bytes())
            sharding.base_bytes -= unique_storage_bytes([gradient], self._device)
        elif not step.in_backward:
            self._look(Place.LOSS)
        step.in_backward = True

    def scatter_begins(self) -> None:
        """The backward has run. Where no gradient goes on from it, FSDP2 scatters only after all other backwards."""
        step, sharding = self._step, self.sharding
        if step is not None and sharding is not None and step.in_backward and step.is_end and not sharding.is_root:
            self._window.take()
            sharding.base_bytes += self._live_bytes() - step.settled_bytes

    def scatter_ends(self) -> None:
        """FSDP2 has handed the gradients over."""
        if self._step is not None and self._step.in_backward:
            self._look(Place.SCATTER)
            self._step.in_backward = False
            self._record(self._step)
            self._end_trial(self._step)

    def _begins_sharded(self, sharding: Sharding, inputs: list[torch.Tensor]) -> None:
        state_bytes = self._known.state_bytes() if sharding.is_root else 0
        self._step = sharding.begins(self._live_bytes(), inputs, state_bytes)
        self._look(Place.GATHER)

    def is_unexpected(self) -> None:
        """The forward that begins came behind another one for the first time: the step was not planned as a whole."""
        if self._step is not None:
            self._step.is_unexpected = True

    def other_tangents_came(self) -> None:
        """A backward began that was not planned: gradients of other outputs came than its plan expects."""
        if self._step is not None:
            self._step.has_other_tangents = True

    def look_away(self, is_first_run: bool = False) -> None:
        """What was allocated since the last look is no part of a step; nor is, if it has just begun, what is there.

        The seconds of the first run of something that was captured or planned are not a step's.
        """
        self._window.take()
        step = self._step
        if step is None or step.is_recorded:
            return
        if self.sharding is not None:
            if Place.GRAPHS not in step.peaks:
                live_bytes = self._live_bytes()
                self.sharding.base_bytes += live_bytes - step.settled_bytes
                step.settled_bytes = live_bytes
            return
        if not step.peaks and self._device.type != "cuda":
            step.live_bytes = self._live_bytes()
        if step.meter is not None and is_first_run:
            step.meter.is_disturbed()
        elif step.meter is not None and not step.peaks:
            step.meter.restarts(self._live_bytes())

    def tries_without(self) -> bool:
        """Whether a step is to show if what was measured above the plan comes again; it then is not counted.

        One step is: where it is over the budget again, what it took stays counted.
        """
        once = [kind for kind in self.extra_bytes if kind not in LASTING]
        if self._is_confirmed or not (once or self.loss_bytes):
            return False
        self._tried_bytes = sum(self.extra_bytes.pop(kind) for kind in once)
        self._is_on_trial = True
        return True

    def forward_ends(self, predicted_bytes: int, result: Any) -> None:
        """The model returned; what its plan says of the step."""
        if self._step is not None:
            self._step.predicted_bytes = max(self._step.predicted_bytes, predicted_bytes)
            self._known.returned(result)
            self._step.returned_bytes = self._live_bytes() - self._moved_bytes(self._step)
            if self._step.is_unplanned and self.sharding is None:
                heed_backward(result, WeakMethod(self._backward_begins), self._step)
        self._look(Place.FORWARD)

    def ends(self) -> None:
        """What comes now is no part of a training step, or of another one."""
        step, self._step = self._step, None
        if step is not None and step.peaks:
            self._record(step)

    def around_forward(self, run: Run, args: list[Any]) -> Any:
        """Run a planned forward."""
        self._look(Place.FORWARD)
        return self._run_graph(run, args)

    def around_backward(self, run: Run, args: list[Any]) -> Any:
        """Run a planned backward."""
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
            torch.autograd.Variable._execution_engine.queue_callback(self._backward_ends)

    def _run_graph(self, run: Run, args: list[Any]) -> Any:
        meter = self._step.meter if self._step is not None else None
        if meter is not None:
            meter.enters(self._live_bytes())
        messages = self.sharding.messages() if self.sharding is not None else {}
        result = run(args)
        self._look(Place.GRAPHS, messages)
        if self._step is not None:
            self._step.settled_bytes = self._live_bytes()
        if meter is not None:
            meter.leaves(self._live_bytes())
        return result

    def _meter(self, live_bytes: int) -> OutsideMeter | None:
        if self._device.type == "cuda" and len(self.history) >= _TIMED_STEPS:
            return None
        return OutsideMeter(live_bytes, clock_of(self._device))

    def update_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer begins to update the model's parameters."""
        self._known.updates(optimizer)
        self.look_away()

    def update_ends(self) -> None:
        """The parameters are updated."""
        is_block = self.sharding is not None and not self.sharding.is_root
        if self._step is not None and self._step.is_recorded and not is_block:
            self._look(Place.UPDATE)
            self._record(self._step)

    def _backward_ends(self) -> None:
        self._look(Place.BACKWARD)
        if self._step is not None:
            self._step.in_backward = False
            if self._step.meter is not None:
                self._step.meter.ends()
            self._record(self._step)
            self._end_trial(self._step)

    def _end_trial(self, step: StepInProgress) -> None:
        """A step without what was measured once: if it is inside the budget, what did not come again is forgotten."""
        if self._is_on_trial and not self._is_confirmed:
            self.loss_bytes = 0
            last, request = self.history[-1], self._request
            again_bytes = last.measured_bytes + request.reserve_bytes - last.predicted_bytes
            if again_bytes > 0:
                tried_bytes = min(self._tried_bytes, request.budget_bytes - last.predicted_bytes)
                self.extra_bytes[above_plan(last.place)] = max(again_bytes, tried_bytes)
            self._corrected()
        if not step.is_judged:
            self._is_confirmed = False
        self._is_on_trial = False

    def _look(self, place: Place, messages: Mapping[str, int] = MappingProxyType({})) -> None:
        step = self._step
        if step is not None:
            step.peaks_at(place, self._window.take() - self.aside_bytes - self._moved_bytes(step), messages)

    def _live_bytes(self) -> int:
        return self._window.live_bytes() - self.aside_bytes

    def _moved_bytes(self, step: StepInProgress) -> int:
        """What others have allocated since a block of a sharded model began its step, and still hold."""
        return self.sharding.base_bytes - step.live_bytes if self.sharding is not None else 0

    def _record(self, step: StepInProgress) -> None:
        """Put the step into the history, or what is known of it by now; say so where it is over the budget."""
        if step.is_recorded and self.history:
            self.history.pop()
        step.is_recorded = True
        measured = step.measured()
        self.history.append(measured)
        excess_bytes = measured.measured_bytes + self._request.reserve_bytes - self._request.budget_bytes
        if excess_bytes > 0 and not step.is_judged:
            step.is_judged = True
            self._is_confirmed = self._is_confirmed or self._is_on_trial
            kind, advice = self._cause(measured, step, excess_bytes)
            if kind == LOSS:
                self.loss_bytes = max(self.loss_bytes, step.peaks[Place.LOSS] - step.returned_bytes)
            levels = {STATE: measured.state_bytes, HELD: measured.held_bytes, FRONT: step.front_bytes}
            levels |= self._held_by_sharding(step)
            self._judge(measured, excess_bytes, kind, advice, levels)

    def _judge(
        self, measured: MeasuredStep, excess_bytes: int, kind: str, advice: str, levels: Mapping[str, int]
    ) -> None:
        message = (
            f"{excess_in_words(measured, excess_bytes, self._request.budget_bytes)} The peak was "
            f"{measured.place.value}{self.sharding.of_block() if self.sharding is not None else ''}. {advice}"
        )
        if self._request.on_excess == "raise":
            raise BudgetError(message, measured.measured_bytes + self._request.reserve_bytes)
        times = self._told[kind] = self._told.get(kind, 0) + 1
        if kind not in ONLY_TOLD and times <= _MOST_CORRECTIONS:
            if kind != LOSS:
                self.extra_bytes[kind] = levels.get(kind) or self.extra_bytes.get(kind, 0) + excess_bytes
            self._corrected()
            message += " From the next call on the plan leaves room for it."
        logger.warning("%s", message)
        if times == 1:
            warnings.warn(f"graphopt: {message}", stacklevel=5)

    def _held_by_sharding(self, step: StepInProgress) -> dict[str, int]:
        return self.sharding.held_beside(step) if self.sharding is not None else {}

    def _cause(self, measured: MeasuredStep, step: StepInProgress, excess_bytes: int) -> tuple[str, str]:
        optimizers = self._known.optimizers() if self._request.optimizer is None else []
        names, held = [type(optimizer).__name__ for optimizer in optimizers], self._held_by_sharding(step)
        return cause_of(measured, step, excess_bytes, self.extra_bytes, held, names, self._plans_loss())
