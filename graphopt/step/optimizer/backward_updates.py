"""Whether parameters are updated in the backward: as the user says, or where the budget needs it."""

from __future__ import annotations

import logging

from graphopt.base.errors import UsageError
from graphopt.passes.window.clip import ClipNorm
from graphopt.plan.choice import Choice
from graphopt.step.optimizer.optimizer_view import OptimizerView
from graphopt.step.options import StepOptions

logger = logging.getLogger("graphopt")


class BackwardUpdates:
    """Of one step: `are_on` says whether its graphs update parameters as gradients come.

    With "auto" they start to when nothing fits otherwise and nothing is in the way, and go on as long as that is so.
    """

    def __init__(
        self, options: StepOptions, view: OptimizerView, choice: Choice, *, has_ranks: bool, is_sharded: bool
    ) -> None:
        self._options, self._view, self._choice = options, view, choice
        self._has_ranks, self._is_sharded = has_ranks, is_sharded
        self._are_needed = False

    @property
    def are_on(self) -> bool:
        """Whether parameters are updated in the backward now."""
        if self._options.update_in_backward == "auto":
            return self._are_needed and not self._obstacle()
        return self._options.update_in_backward

    @property
    def ways(self) -> tuple[tuple[str, str], ...]:
        """What the report says of it."""
        if not self.are_on:
            return ()
        why = "" if self._options.update_in_backward is True else ", as nothing fits otherwise"
        return (("updates", f"of each parameter as soon as its gradient exists{why}"),)

    def check(self) -> None:
        """Raise UsageError where the user wants what options and optimizer, as they are now, do not go with."""
        if self._options.update_in_backward is True and (what := self._obstacle()):
            raise UsageError(f"update_in_backward=True does not go with {what}")

    def help(self) -> bool:
        """Nothing fits: whether that is worth another try, as updates are in the backward from now on."""
        is_new = self._options.update_in_backward == "auto" and not self._are_needed
        if not is_new or self._has_ranks or self._is_sharded or self._obstacle():
            return False
        self._are_needed = True
        logger.info("no plan fits while all gradients live: each parameter is updated as soon as its gradient exists")
        return True

    def _obstacle(self) -> str:
        """What updating in the backward does not go with; "" where nothing is in the way."""
        options, view, choice = self._options, self._view, self._choice
        why = {
            "a loss scale, as it must know first whether any gradient overflowed": options.loss_scale is not None,
            "ClipNorm, as it must know all gradients first": isinstance(options.clip, ClipNorm),
            "accumulate, as gradients are whole only after the last micro-batch": options.accumulate != 1,
            f"{type(view.optimizer).__name__}, whose step() wants all gradients": view.kind == "step",
            "float32 masters": bool(view.masters),
            "several processes, as it would update before gradients are summed over them": (
                self._has_ranks and not self._is_sharded
            ),
            "offload=: a transfer that fails in the backward would leave some parameters updated and others not": (
                choice.offload is not None
            ),
            "compiler='inductor', as the optimizer's options change": choice.compiler == "inductor",
        }
        return next((what for what, is_so in why.items() if is_so), "")
