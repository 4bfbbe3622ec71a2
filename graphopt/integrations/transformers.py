"""transformers' Trainer, and what is made of it, such as TRL's SFTTrainer."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

import graphopt
from graphopt.base.errors import UsageError
from graphopt.base.units import Budget
from graphopt.integrations.logging import NewSteps
from graphopt.integrations.optimizers import known_optimizer


class GraphoptCallback(TrainerCallback):
    """Trains a Trainer's model inside of `mem_budget`: `GraphoptCallback("8GiB").add_to(trainer)`.

    `options` are those of `graphopt.optimize`, which is called when training begins, with the Trainer's own optimizer.
    What steps took is a part of what the Trainer logs of them. Given as `callbacks=[...]` it trains just so, but the
    Trainer has its reporters called first: TensorBoard and wandb are then not told of bytes.
    """

    def __init__(self, mem_budget: Budget | None = None, **options: Any) -> None:
        self._mem_budget, self._options = mem_budget, options
        self._new: NewSteps | None = None

    def add_to(self, trainer: Trainer) -> None:
        """Stand in front of the Trainer's other callbacks, which then log what this one has to say."""
        trainer.callback_handler.callbacks.insert(0, self)

    def on_train_begin(self, args: TrainingArguments, *_: Any, **there: Any) -> None:
        """Optimize the model; raises what `graphopt.optimize` does, and UsageError where the plan would be lost."""
        if args.torch_compile:
            raise UsageError("torch_compile: drop it, as graphopt compiles the model itself")
        if args.n_gpu > 1:
            raise UsageError(
                f"the Trainer would copy the model to {args.n_gpu} GPUs at each step (DataParallel), without its plan: "
                "start a process for each, `torchrun --nproc-per-node ...`"
            )
        options = {"optimizer": known_optimizer([there["optimizer"]], there["model"]), **self._options}
        self._new = NewSteps(graphopt.optimize(there["model"], self._mem_budget, **options))

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002  it is called by this name
        state: TrainerState,
        *_: Any,
        **there: Any,
    ) -> None:
        """Add what the steps since the last log took."""
        logs = there.get("logs") or {}
        if self._new is None or "loss" not in logs or not (steps := self._new.taken()):
            return
        values = self._new.values(steps)
        logs.update(values)
        state.log_history[-1].update(values)
