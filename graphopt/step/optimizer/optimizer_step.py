"""Whether an optimizer's `step()` is what its class says, so that a fused op may stand for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import optimizer as torch_optimizer

from graphopt.base.errors import UsageError
from graphopt.run.watch.update_hook import heed_updates

_FUSED: dict[type[torch.optim.Optimizer], str] = {
    torch.optim.Adam: "adam",
    torch.optim.AdamW: "adam",
    torch.optim.SGD: "sgd",
}


def kind_of_step(optimizer: torch.optim.Optimizer) -> str:
    """ "adam" or "sgd" where a fused op does what this optimizer's `step()` does now, else "step"."""
    kind = _FUSED.get(type(optimizer), "step")
    before = optimizer._optimizer_step_pre_hooks.values()
    if kind == "step" or not all(map(is_own_hook, before)) or optimizer._optimizer_step_post_hooks:
        return "step"
    if any(group.get("differentiable") for group in optimizer.param_groups):
        return "step"
    return kind if _is_from_torch(optimizer.step) and not _hooked_by_others() else "step"


def own_hook(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook of graphopt's on `step()`, which changes nothing of what it does."""
    hook.is_graphopts = True  # type: ignore[attr-defined]
    return hook


def is_own_hook(hook: object) -> bool:
    """Whether `own_hook` made it."""
    return getattr(hook, "is_graphopts", False)


def check_step_takes_no_closure(optimizer: torch.optim.Optimizer) -> None:
    """Raise UsageError for an optimizer, such as LBFGS, that computes the loss several times in a step."""
    # of the class: what a scheduler puts around the optimizer's own seems to want a `self`
    _, *wanted = required_arguments(type(optimizer).step) or [""]
    if wanted:
        raise UsageError(
            f"{type(optimizer).__name__}.step() wants {', '.join(wanted)}: a closure computes the loss again, as often "
            "as the optimizer likes, and a training step computes it once. Use an optimizer whose step() needs no "
            "arguments, or graphopt.optimize() and a loop of your own"
        )


def required_arguments(function: Callable[..., Any]) -> list[str]:
    """Names of the arguments that a function cannot be called without."""
    try:
        asked = inspect.signature(function).parameters.values()
    except ValueError:  # it has no signature to look at
        return []
    variadic = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [each.name for each in asked if each.default is inspect.Parameter.empty and each.kind not in variadic]


def _is_from_torch(step: object) -> bool:
    """Whether every function around it, and the innermost, is torch.optim's.

    Learning-rate schedulers put one of theirs around the `step` of the optimizer itself.
    """
    function = getattr(step, "__func__", step)
    while function is not None:
        module = getattr(function, "__globals__", {}).get("__name__", "")
        if not module.startswith("torch.optim."):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def _hooked_by_others() -> bool:
    """Whether there are hooks for every optimizer's step that are not our own."""
    both = torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks
    return any(getattr(hook, "__module__", "") != heed_updates.__module__ for hooks in both for hook in hooks.values())
