"""Which optimizer of a training loop a plan is to count."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from graphopt.base.errors import UsageError
from graphopt.cost_models.model_state import optimizer_bytes

logger = logging.getLogger("graphopt")


def known_optimizer(optimizers: Iterable[Any], model: nn.Module) -> torch.optim.Optimizer | None:
    """The one optimizer that updates `model`, out of accelerate's wrapper; None where its state is not known yet.

    None too where several update it: their state then counts from the second step on.
    """
    parameters = set(model.parameters())
    unwrapped: list[torch.optim.Optimizer] = [getattr(each, "optimizer", each) for each in optimizers]
    found = [each for each in unwrapped if any(parameters.intersection(group["params"]) for group in each.param_groups)]
    if len(found) != 1:
        return None
    try:
        optimizer_bytes(found[0])
    except UsageError as error:
        logger.info("the optimizer's state counts from the second step on: %s", error)
        return None
    return found[0]
