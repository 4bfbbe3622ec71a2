"""Lightning, by either of its names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

import graphopt
from graphopt.base.errors import UsageError
from graphopt.base.units import Budget
from graphopt.integrations.logging import NewSteps
from graphopt.integrations.optimizers import known_optimizer

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
else:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError:
        from lightning.pytorch import Callback, LightningModule, Trainer


class GraphoptLightningCallback(Callback):
    """Trains a LightningModule inside of `mem_budget`: `Trainer(callbacks=[GraphoptLightningCallback("8GiB")])`.

    What is optimized, when fitting begins, is the submodule that holds all parameters that are trained, else the
    LightningModule itself, for a `training_step` that calls `self(...)`; `module` names another one. `options` are
    those of `graphopt.optimize`. What steps took goes to the Trainer's loggers every `log_every_n_steps`.
    """

    def __init__(self, mem_budget: Budget | None = None, *, module: str | None = None, **options: Any) -> None:
        self._mem_budget, self._module, self._options = mem_budget, module, options
        self._model = nn.Module()
        self._new: NewSteps | None = None
        self._logged_step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Optimize the model; raises what `graphopt.optimize` does, and UsageError for a module that is not there."""
        self._model = model = _module_to_optimize(pl_module, self._module)
        options = {"optimizer": known_optimizer(trainer.optimizers, model), **self._options}
        self._new = NewSteps(graphopt.optimize(model, self._mem_budget, **options))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Log what steps took where the Trainer logs; raises UsageError where nothing ran what was optimized."""
        if not self._model.graphopt.session.graphs:  # type: ignore[union-attr]
            raise UsageError(
                f"training_step did not call {type(self._model).__name__}, which was optimized, or not in training "
                "mode: name the module that it calls, GraphoptLightningCallback(..., module='...')"
            )
        step, often = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step != self._logged_step and step % max(often, 1) == 0:
            self._log(trainer)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Log what is left."""
        self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        self._logged_step = trainer.global_step
        if self._new is not None and (steps := self._new.taken()):
            values = self._new.values(steps)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step - 1)  # Lightning's own are counted from 0


def _module_to_optimize(pl_module: LightningModule, name: str | None) -> nn.Module:
    if name is not None:
        found: nn.Module | None = dict(pl_module.named_modules()).get(name)
        if found is None:
            raise UsageError(f"module: {type(pl_module).__name__} has no submodule {name!r}")
        return found
    trained = {parameter for parameter in pl_module.parameters() if parameter.requires_grad}
    children: Iterator[nn.Module] = pl_module.children()
    return next((child for child in children if trained <= set(child.parameters())), pl_module)
