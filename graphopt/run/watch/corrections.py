"""What steps over the budget change: it is told, counted beside the plan from then on, and tried once more without."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping

from graphopt.base.errors import BudgetError
from graphopt.base.units import format_bytes
from graphopt.run.model.request import Request
from graphopt.run.watch.causes import (
    FRONT,
    HELD,
    IN_GRAPHS,
    LASTING,
    LOSS,
    ONLY_TOLD,
    RAISED,
    STATE,
    above_plan,
    cause_of,
)
from graphopt.run.watch.measured_step import MeasuredStep, Place, StepInProgress, excess_in_words
from graphopt.run.watch.scratch_search import LOOKS_FOR_IT, Located

logger = logging.getLogger("graphopt")

#: Corrections for one cause after which it is only told of: what grows at every step cannot be planned for.
_MOST_CORRECTIONS = 4
LEAVES_ROOM = " From the next call on the plan leaves room for it."


#: Called where what is to be counted has changed; given is the step that took more in a planned graph than is planned.
#: True where the operator is looked for that this was.
Corrected = Callable[[MeasuredStep | None], bool]


class Corrections:
    """`extra_bytes` says what is to be counted beside the plan from now on, by kind.

    `loss_bytes` is what is to be counted between the model's forward and its backward, beside what the plan holds.
    `corrected` is called where either has changed, with the step that was above its plan in a planned graph, if that is
    why. `plans_loss` tells whether a plan can have a loss in it: where the
    model is one graph.
    """

    def __init__(self, request: Request, corrected: Corrected, plans_loss: Callable[[], bool]) -> None:
        self.extra_bytes: dict[str, int] = {}
        self.loss_bytes = 0
        self._request, self._corrected, self._plans_loss = request, corrected, plans_loss
        self._told: dict[str, int] = {}
        self._is_on_trial = self._is_confirmed = self._comes_again = False
        self._tried_bytes, self._forgotten = 0, frozenset[str]()

    def counts_state(self, state_bytes: int) -> None:
        """A step begins with so much state of optimizers, of which no plan was told: it is counted from now on."""
        if state_bytes == self.extra_bytes.get(STATE, 0):
            return
        self.extra_bytes[STATE] = state_bytes
        if not state_bytes:
            del self.extra_bytes[STATE]
        logger.info("the optimizer's state takes %s, which plans count from now on", format_bytes(state_bytes))
        self._corrected(None)

    def judge(
        self,
        measured: MeasuredStep,
        step: StepInProgress,
        sharding: Mapping[str, int],
        of_block: str,
    ) -> None:
        """Say that a step is over the budget, and leave room for what of it was not told of yet, where that helps.

        `sharding` is what FSDP2 held, by kind. With "raise" an excess is a BudgetError.
        """
        excess_bytes = self._above_budget(measured)
        self._is_confirmed = self._is_confirmed or self._is_on_trial
        counted, plans_loss = self.extra_bytes, self._plans_loss()
        kind, advice = cause_of(measured, step, excess_bytes, counted, sharding, plans_loss)
        if kind == LOSS:
            self.loss_bytes = max(self.loss_bytes, step.peaks[Place.LOSS] - step.returned_bytes)
        is_first, more_bytes, step.judged_bytes = not step.judged_bytes, excess_bytes - step.judged_bytes, excess_bytes
        if is_first:  # not every plan fills the budget
            more_bytes += self._request.budget_bytes - measured.predicted_bytes
        message = (
            f"{excess_in_words(measured, excess_bytes, self._request.budget_bytes)} The peak was "
            f"{measured.place.value}{of_block}. {advice}"
        )
        if self._request.on_excess == "raise":
            raise BudgetError(message, measured.measured_bytes + self._request.reserve_bytes)
        self._comes_again = self._comes_again or kind in self._forgotten
        levels = {HELD: measured.held_bytes, FRONT: step.front_bytes, RAISED: step.raised_bytes, **sharding}
        extra_bytes = levels.get(kind) or self.extra_bytes.get(kind, 0) + more_bytes
        self._tell(kind, message, extra_bytes, measured, is_first=is_first)

    def tries_without(self) -> bool:
        """Whether a step is to show if what was measured above the plan comes again; it then is not counted.

        One step is: where it is over the budget again, what it took stays counted.
        """
        once = [kind for kind in self.extra_bytes if kind not in LASTING]
        if self._is_confirmed or not (once or self.loss_bytes):
            return False
        self._forgotten |= {*once, *([LOSS] if self.loss_bytes else [])}
        self._tried_bytes = sum(self.extra_bytes.pop(kind) for kind in once)
        self._is_on_trial = True
        return True

    def ends_trial(self, measured: MeasuredStep, step: StepInProgress) -> None:
        """A step without what was measured once: if it is inside the budget, what did not come again is forgotten."""
        if self._is_on_trial and self._comes_again and not step.judged_bytes:
            return  # it comes, but not at every step: the smallest plan stays
        if self._is_on_trial and not self._is_confirmed:
            self.loss_bytes = 0
            again_bytes = measured.measured_bytes + self._request.reserve_bytes - measured.predicted_bytes
            if again_bytes > 0:
                tried_bytes = min(self._tried_bytes, self._request.budget_bytes - measured.predicted_bytes)
                self.extra_bytes[above_plan(measured.place)] = max(again_bytes, tried_bytes)
            self._corrected(None)
        if not step.judged_bytes:
            self._is_confirmed = False
        self._is_on_trial = False

    def may_be_over(self, measured: MeasuredStep | None) -> None:
        """Say that a step may have been over the budget, where that was not looked at in time."""
        if measured is not None and (excess_bytes := self._above_budget(measured)) > 0:
            logger.warning(
                "Behind the planned graph of a backward, and before an update or the next step, there were %s: "
                "%s bytes more than the budget of %s leaves. It is not known if that was in the backward: in the next "
                "step it is.",
                format_bytes(measured.measured_bytes),
                f"{excess_bytes:,}",
                format_bytes(self._request.budget_bytes),
            )

    def is_over(self, measured: MeasuredStep, step: StepInProgress) -> bool:
        """Whether a step took more than the budget leaves it, and than was told of."""
        return self._above_budget(measured) > step.judged_bytes

    def _above_budget(self, measured: MeasuredStep) -> int:
        return measured.measured_bytes + self._request.reserve_bytes - self._request.budget_bytes

    def is_located(self, found: Located) -> None:
        """What was above the plan in a planned graph is counted there: so much is still to be kept free beside it."""
        self.extra_bytes.pop(IN_GRAPHS, None)
        if found.beside_bytes:
            self.extra_bytes[IN_GRAPHS] = found.beside_bytes
        logger.warning("%s", found)
        warnings.warn(f"graphopt: {found}", stacklevel=6)

    def above_plan(self, measured: MeasuredStep, counted_bytes: int) -> int:
        """By how much a step was above its plan, of which `counted_bytes` were kept free for just that."""
        return measured.measured_bytes + self._request.reserve_bytes - measured.predicted_bytes + counted_bytes

    def _tell(self, kind: str, message: str, extra_bytes: int, measured: MeasuredStep, *, is_first: bool) -> None:
        times = self._told[kind] = self._told.get(kind, 0) + is_first
        if kind not in ONLY_TOLD and times <= _MOST_CORRECTIONS:
            if kind != LOSS:
                self.extra_bytes[kind] = extra_bytes
            message += LEAVES_ROOM
            if self._corrected(measured if kind == IN_GRAPHS else None):
                message += LOOKS_FOR_IT
        logger.warning("%s", message)
        if times == 1 and is_first:
            warnings.warn(f"graphopt: {message}", stacklevel=6)
