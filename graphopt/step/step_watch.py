"""The watch over a training step: its peak, compared with the budget, and what that changes for the next one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import fx

from graphopt.base.errors import BudgetError
from graphopt.base.units import format_bytes
from graphopt.device.peak_window import CpuWindow, peak_window
from graphopt.device.storages import tensors_in, unique_storage_bytes
from graphopt.problem.found_scratch import FoundScratch
from graphopt.run.graphs.gradients import gradient_bytes, gradients_there
from graphopt.run.model.request import OnExcess
from graphopt.run.watch.causes import IN_GRAPHS
from graphopt.run.watch.corrections import LEAVES_ROOM
from graphopt.run.watch.known_memory import KnownMemory
from graphopt.run.watch.measured_step import History, MeasuredStep, Place, excess_in_words
from graphopt.run.watch.scratch_search import LOOKS_FOR_IT
from graphopt.step.left_behind import LeftBehind
from graphopt.step.memory import PlannedMicro, StepMemory
from graphopt.step.micro_batches.micro_graph import Micro
from graphopt.step.micro_batches.micro_search import MicroSearch

logger = logging.getLogger("graphopt")

T = TypeVar("T")

#: Corrections for one cause after which it is only told of: what grows at every step cannot be planned for.
_MOST_CORRECTIONS = 4
_UPDATE, _KEPT = "update", "kept from earlier steps"


class StepWatch:
    """Measures steps of one model; `history` are those measured last.

    What a step took above its plan is counted from the next call on: `is_due` says that the plans are to be made anew
    then, for which `forget_plans` is called. Only what runs behind the graphs is told of alone, as no plan changes it.
    With several ranks all of them correct in the same call (`ranks/lockstep.py`).
    """

    def __init__(
        self, memory: StepMemory, on_excess: OnExcess, forget_plans: Callable[[], None], *, is_alone: bool
    ) -> None:
        self.history = History()
        self.is_due = self.is_confirmed = False
        self._error: BudgetError | None = None
        self._tried_bytes = 0
        self._memory, self._on_excess, self._forget_plans = memory, on_excess, forget_plans
        self._known = self._known_memory()
        self._window = peak_window(memory.device)
        # what the network lets go of late would count as kept; on CUDA all that is there counts
        self._left = LeftBehind() if is_alone and memory.device.type == "cpu" else None
        # where several ranks plan alike, none knows of an operator what the others do not
        may_search = is_alone and memory.choice.compiler == "eager" and isinstance(self._window, CpuWindow)
        self._search = MicroSearch(memory) if may_search else None
        self._peaks: dict[Place, int] = {}
        self._told: dict[str, int] = {}

    @property
    def found_scratch(self) -> tuple[FoundScratch, ...]:
        """The operators that took more than planned, as far as they were found."""
        return self._search.found if self._search is not None else ()

    @property
    def may_try(self) -> bool:
        """Whether a step may show if what was measured above the plan comes again, where nothing fits beside it."""
        return bool(self._memory.above_bytes or self._memory.levels) and not self.is_confirmed

    def forget_model(self) -> None:
        """The model has other parameters: they are counted anew."""
        self._known = self._known_memory()
        self.is_due = self.is_confirmed = False
        self._tried_bytes = 0
        if self._search is not None:
            self._search.ends()

    def corrects(self) -> None:
        """The step that begins is planned anew."""
        self.is_due = False
        self._forget_plans()

    def tries_without(self) -> None:
        """Nothing fits beside what was measured: the smallest plan shows in one step whether that comes again."""
        self._memory.levels.clear()
        self._tried_bytes, self._memory.above_bytes = self._memory.above_bytes, 0
        self._memory.is_trial = True
        self._forget_plans()

    def raises(self) -> None:
        """Raise BudgetError where the last step was over the budget, and that is to be an error."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def runs_graph(self, module: fx.GraphModule, run: Callable[..., Any], args: list[Any]) -> Any:
        """Run a micro-batch's graph; what comes then is behind it."""
        result = run(args) if self._search is None else self._search.run(module, run, args)
        self._look(Place.GRAPHS)
        return result

    def measured(self, batch: list[torch.Tensor], micros: Sequence[Micro], run: Callable[[], T]) -> T:
        """Run a step of these micro-batches, which are planned, and measure it."""
        plans, window = self._memory.plans_of(micros), self._window
        if window is None:
            self._memory.is_trial = False
            return run()
        live_bytes = window.live_bytes()
        start_bytes, state_bytes = (live_bytes, 0) if self._memory.device.type == "cuda" else self._there(batch)
        if self._search is not None:
            self._search.step_begins(micros)
        kept_bytes = self._left.begins(live_bytes, start_bytes + state_bytes) if self._left else 0
        self._peaks = {}
        window.take()
        result = run()
        self._look(Place.UPDATE)
        if self._left:
            self._left.ends(window.live_bytes(), sum(self._there([*batch, *tensors_in(result)])))
        there_bytes = start_bytes + state_bytes + kept_bytes
        highest = max(plans, key=lambda planned: planned.peak_bytes)
        peaks = {place: there_bytes + max(peak - live_bytes, 0) for place, peak in self._peaks.items()}
        place = max(peaks, key=lambda each: peaks[each])
        self.history.adds(MeasuredStep(highest.peak_bytes, peaks[place], place, state_bytes, kept_bytes))
        self._judge(highest, peaks)
        return result

    def _known_memory(self) -> KnownMemory:
        known = KnownMemory(self._memory.model, self._memory.device)
        known.updates(self._memory.view.optimizer)
        return known

    def _look(self, place: Place) -> None:
        if self._window is not None:
            self._peaks[place] = max(self._window.take(), self._peaks.get(place, 0))

    def _there(self, batch: list[torch.Tensor]) -> tuple[int, int]:
        """Bytes by name that are there, and the optimizer's state beside them."""
        memory = self._memory
        state_bytes = self._known.state_bytes()
        own = (*memory.view.masters.values(), *memory.view.unpublished_state, *memory.held(), *batch)
        named_bytes = unique_storage_bytes(own, memory.device)
        named_bytes += gradient_bytes(gradients_there(memory.model), memory.device)
        return self._known.model_bytes() + named_bytes, state_bytes

    def _judge(self, planned: PlannedMicro, peaks: dict[Place, int]) -> None:
        memory, step = self._memory, self.history[-1]
        was_trial, memory.is_trial = memory.is_trial, False
        excess_bytes = step.measured_bytes + memory.reserve_bytes - memory.budget_bytes
        self.is_confirmed = was_trial and excess_bytes > 0
        is_searched = self._search is not None and self._search.is_running
        if excess_bytes <= 0 and not was_trial and not is_searched:
            return
        grown = memory.grown(planned)
        if step.held_bytes > planned.resident_bytes.get(_KEPT, 0):
            grown[_KEPT] = step.held_bytes
        parts = {kind: size - planned.resident_bytes.get(kind, 0) for kind, size in grown.items()}
        named_bytes = sum(parts.values()) - memory.reserve_bytes
        above = {place: peak - planned.peaks[place] - named_bytes for place, peak in peaks.items()}
        if excess_bytes > 0:
            self._tell(planned, grown, parts, above, excess_bytes)
        elif was_trial:
            self._ends_trial(planned, grown, parts, above)
        located = self._search.step_ends(planned, above[Place.GRAPHS]) if self._search is not None else None
        if located is not None:
            memory.above_bytes, self.is_due = located.beside_bytes, True
            logger.warning("%s", located)
            warnings.warn(f"graphopt: {located}", stacklevel=5)

    def _ends_trial(
        self, planned: PlannedMicro, grown: dict[str, int], parts: dict[str, int], above: dict[Place, int]
    ) -> None:
        """The smallest plan was inside the budget: what did not come again is forgotten."""
        memory = self._memory
        again_bytes, self.is_due = max(above[Place.GRAPHS], 0), True
        room_bytes = memory.budget_bytes - planned.peaks[Place.GRAPHS] - sum(parts.values())
        # beside another plan it took more: the smallest one is known to fit
        memory.above_bytes = max(again_bytes, min(self._tried_bytes, room_bytes)) if again_bytes else 0
        memory.levels = grown
        again_bytes += sum(parts.values())
        logger.info("of what earlier steps took above the plan, %s came again", format_bytes(again_bytes))

    def _tell(
        self,
        planned: PlannedMicro,
        grown: dict[str, int],
        parts: dict[str, int],
        above: dict[Place, int],
        excess_bytes: int,
    ) -> None:
        """Say what was above the plan, by kind or by place, and count it from the next call on."""
        memory, step = self._memory, self.history[-1]
        if above[Place.GRAPHS] > 0:
            parts[IN_GRAPHS] = above[Place.GRAPHS]
        if step.place is Place.UPDATE and above[Place.UPDATE] > max(parts.values(), default=0):
            parts[_UPDATE] = above[Place.UPDATE]
        parts = parts or {IN_GRAPHS: excess_bytes}
        kind = max(parts, key=lambda each: parts[each])
        message = (
            f"{excess_in_words(step, excess_bytes, memory.budget_bytes)} The peak was {step.place.value}. "
            f"{_advice(kind, parts[kind])}"
        )
        if self._on_excess == "raise":
            self._error = BudgetError(message, step.measured_bytes + memory.reserve_bytes)
            return
        times = self._told[kind] = self._told.get(kind, 0) + 1
        if parts.keys() != {_UPDATE} and times <= _MOST_CORRECTIONS:
            memory.levels |= {each: max(size, memory.levels.get(each, 0)) for each, size in grown.items()}
            memory.above_bytes += parts.get(IN_GRAPHS, 0)
            self.is_due = True
            message += LEAVES_ROOM
            if self._search is not None and kind == IN_GRAPHS and above[Place.GRAPHS] > 0:
                self._search.begins(planned, above[Place.GRAPHS])
                message += LOOKS_FOR_IT
        logger.warning("%s", message)
        if times == 1:
            warnings.warn(f"graphopt: {message}", stacklevel=6)


def _advice(kind: str, size: int) -> str:
    """What to say of the largest part of what was above the plan."""
    known = {
        IN_GRAPHS: "No plan counts that much, such as the scratch memory of an operator that depends on its data, or "
        "that nothing was run to find out (cost_model='roofline').",
        _UPDATE: "That is the optimizer's step, a hook of it, or the scheduler: no plan changes it. A larger budget "
        "may, or foreach=False.",
        _KEPT: f"Earlier steps left {format_bytes(size)} more than was planned for, such as what a hook of the "
        "optimizer or a custom operator keeps.",
        "other": f"{format_bytes(size)} more than when this was planned is allocated beside the step: outputs, "
        "metrics or batches that are kept.",
    }
    return known.get(kind, f"The {kind} take {format_bytes(size)} more than when this was planned.")
