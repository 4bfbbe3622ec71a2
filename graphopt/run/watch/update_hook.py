"""Telling when an optimizer of a model's parameters updates them, whoever made it."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


class HeedsUpdates(Protocol):
    """Who is told: lives as long as somebody else holds it."""

    def update_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer of the model's parameters begins to step."""

    def update_ends(self) -> None:
        """It has stepped."""


def heed_updates(model: nn.Module, heeding: HeedsUpdates) -> None:
    """Tell `heeding` of every step of an optimizer that holds a parameter of the model, until it is gone."""
    who, own = weakref.ref(heeding), weakref.ref(model)
    is_own: weakref.WeakKeyDictionary[torch.optim.Optimizer, bool] = weakref.WeakKeyDictionary()

    def heeds(optimizer: torch.optim.Optimizer) -> HeedsUpdates | None:
        if optimizer not in is_own:
            inside = {id(parameter) for parameter in found.parameters()} if (found := own()) is not None else set()
            is_own[optimizer] = any(id(p) in inside for group in optimizer.param_groups for p in group["params"])
        return who() if is_own[optimizer] else None

    def before(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if (told := heeds(optimizer)) is not None:
            told.update_begins(optimizer)

    def after(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if (told := heeds(optimizer)) is not None:
            told.update_ends()

    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    weakref.finalize(heeding, _remove, handles)


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
