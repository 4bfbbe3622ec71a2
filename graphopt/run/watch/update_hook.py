"""Telling when a backward comes to what a model returned, and when an optimizer updates its parameters."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from graphopt.device.storages import tensors_in


class HeedsUpdates(Protocol):
    """Who is told: lives as long as somebody else holds it."""

    def updated_by(self, optimizer: torch.optim.Optimizer) -> None:
        """This one updates the model's parameters: told when it is met first."""

    def update_begins(self) -> None:
        """An optimizer of the model's parameters begins to step."""

    def update_ends(self) -> None:
        """It has stepped."""


def heed_backward(result: Any, begins: weakref.WeakMethod[Callable[[Any], None]], step: Any) -> None:
    """Call `begins(step)` when a backward comes to a tensor that a model returned, whatever is behind it."""

    def comes(_gradients: object) -> None:
        if (call := begins()) is not None:
            call(step)

    for node in {tensor.grad_fn for tensor in tensors_in(result) if tensor.grad_fn is not None}:
        node.register_prehook(comes)


def heed_updates(model: nn.Module, heeding: HeedsUpdates) -> Callable[[], None]:
    """Tell `heeding` of every step of an optimizer that holds a parameter of the model, until it is gone.

    What is returned looks for those that were made since: one that has not stepped yet may have state that was loaded.
    """
    who, own = weakref.ref(heeding), weakref.ref(model)
    #: Who is told of each optimizer, by its id, as it is asked for twice in every step; it goes with the optimizer.
    told_of: dict[int, Callable[[], HeedsUpdates | None]] = {}
    met: dict[int, weakref.ref[torch.optim.Optimizer]] = {}

    def meets(optimizer: torch.optim.Optimizer) -> Callable[[], HeedsUpdates | None]:
        key = id(optimizer)

        def goes(_: object) -> None:
            del told_of[key], met[key]

        inside = {id(parameter) for parameter in there.parameters()} if (there := own()) is not None else set()
        is_own = any(id(p) in inside for group in optimizer.param_groups for p in group["params"])
        told_of[key], met[key] = who if is_own else _nobody, weakref.ref(optimizer, goes)
        if is_own and (told := who()) is not None:
            told.updated_by(optimizer)
        return told_of[key]

    def before(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        told = (told_of.get(id(optimizer)) or meets(optimizer))()
        if told is not None:
            told.update_begins()

    def after(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        told = told_of.get(id(optimizer), _nobody)()
        if told is not None:
            told.update_ends()

    def looks() -> None:
        for optimizer in _optimizers_there():
            if told_of.get(id(optimizer), _nobody) is _nobody:
                meets(optimizer)

    looks()  # their state may be there already, as in a training that goes on
    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    weakref.finalize(heeding, _remove, handles)
    return looks


def _optimizers_there() -> list[torch.optim.Optimizer]:
    """All that live: nobody keeps a list of them. It takes some ms, once for each model."""
    return [each for each in gc.get_objects() if issubclass(type(each), torch.optim.Optimizer)]


def _nobody() -> None:
    return None


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
