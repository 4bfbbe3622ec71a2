"""Arguments of `train_step()` of a wrong kind: refused when the step is built, each with the way to write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from graphopt.base.errors import UsageError
from graphopt.compression.choose import Auto
from graphopt.compression.methods import Compression
from graphopt.device.dtypes import HALF
from graphopt.passes.window.clip import Clip
from graphopt.passes.window.loss_scale import LossScale
from graphopt.step.optimizer.optimizer_step import required_arguments


def check_group(group: object) -> None:
    """Raise UsageError for what is no group of processes that this one is in.

    `new_group` gives a number to a process that it leaves out, which would train alone then.
    """
    if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise UsageError(
            "group: expected a process group that this process is in, as torch.distributed.new_group([0, 1]) or "
            f"mesh.get_group() gives it, or None for all processes, got {_shown(group)}"
        )


def check_model_and_optimizer(model: object, optimizer: object) -> None:
    """Raise UsageError where one of them is something else."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"train_step() takes an nn.Module, got {_shown(model)}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"train_step() takes a torch.optim.Optimizer, got {_shown(optimizer)}")


def check_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError for the first option of `train_step()` of a kind that it cannot be."""
    for name, value in options.items():
        check = _CHECKS.get(name)
        expected = check(value) if check is not None else ""
        if expected:
            raise UsageError(f"{name}: expected {expected}, got {_shown(value)}")


def _loss_fn(value: object) -> str:
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f"a loss, and this is a class of them: write {value.__name__}()"
    return (
        ""
        if value is None or callable(value)
        else (
            "a function of the model's output and the target, such as torch.nn.functional.mse_loss, or None where the "
            "model returns its loss"
        )
    )


def _bytes(value: object) -> str:
    if value is None or (isinstance(value, (int, float, str)) and not isinstance(value, bool)):
        return ""
    return "a number of bytes, such as '8GiB', '80%' or 8589934592"


def _reserve(value: object) -> str:
    if isinstance(value, (int, float)) and value < 0:
        return "a number of bytes, 0 or more"
    return _bytes(value)


def _example_kwargs(value: object) -> str:
    is_right = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    return "" if value is None or is_right else "a dict of keyword inputs by name, or None"


def _accumulate(value: object) -> str:
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    is_auto = isinstance(value, str) and value == "auto"
    return "" if is_number or is_auto else "a whole number of at least 1, or 'auto'"


def _clip(value: object) -> str:
    limit = _number(value, 1.0)
    return (
        ""
        if isinstance(value, (*_kinds(Clip), type(None)))
        else (
            f"graphopt.ClipNorm({limit}) to limit the norm of the gradients, graphopt.ClipValue({limit}) to limit each "
            "element, or None"
        )
    )


def _loss_scale(value: object) -> str:
    scale = _number(value, 65536.0)
    return (
        ""
        if isinstance(value, (*_kinds(LossScale), type(None)))
        else (
            f"graphopt.ConstantLossScale({scale}) for a scale that stays, graphopt.DynamicLossScale(initial={scale}) "
            "for one that moves as GradScaler's does, or None"
        )
    )


def _weights(value: object) -> str:
    is_known = value is None or (isinstance(value, str) and value in ("rows", "tokens"))
    return "" if is_known or callable(value) else "'rows', 'tokens' or a function of a micro-batch"


def _compress(value: object) -> str:
    is_auto = isinstance(value, str) and value == "auto"
    is_right = is_auto or isinstance(value, (*_kinds(Compression), Auto, type(None)))
    return "" if is_right else "a method such as TopK(0.01), Auto(...), 'auto' or None"


def _autocast(value: object) -> str:
    is_half = isinstance(value, torch.dtype) and value in HALF
    return "" if value is None or is_half else "torch.bfloat16, torch.float16 or None"


def _bool(value: object) -> str:
    return "" if isinstance(value, bool) else "True or False"


def _bool_or_auto(value: object) -> str:
    return "" if isinstance(value, bool) or (isinstance(value, str) and value == "auto") else "True, False or 'auto'"


def _shard(value: object) -> str:
    is_named = isinstance(value, str) and value in ("optimizer", "gradients")
    is_right = isinstance(value, bool) or is_named or type(value).__name__ == "DeviceMesh"
    return "" if is_right else "True, False, 'gradients', 'optimizer' or a torch.distributed.device_mesh.DeviceMesh"


def _lr_scheduler(value: object) -> str:
    if value is None:
        return ""
    step = None if isinstance(value, type) else getattr(value, "step", None)
    if not callable(step):
        return "a learning-rate scheduler, such as torch.optim.lr_scheduler.StepLR(optimizer, 10), or None"
    if wanted := required_arguments(step):
        return f"a scheduler whose step() needs no arguments; this one's wants {', '.join(wanted)}: call it yourself"
    return ""


def _name(value: object) -> str:
    return "" if isinstance(value, str) else "the name of one"


def _seconds(value: object) -> str:
    return "" if isinstance(value, (int, float)) and not isinstance(value, bool) else "a number of seconds, 0 or more"


def _number(value: object, otherwise: float) -> float:
    """The number that was given in an option's place, if it may be meant; else one to show."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else otherwise


def _kinds(union: Any) -> tuple[type, ...]:
    return getattr(union, "__args__", (union,))


def _shown(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    is_short = value is None or isinstance(value, (str, int, float, torch.dtype))
    return repr(value) if is_short else f"an object of {type(value).__name__}"


_CHECKS = {
    "loss_fn": _loss_fn,
    "mem_budget": _bytes,
    "example_kwargs": _example_kwargs,
    "accumulate": _accumulate,
    "clip": _clip,
    "loss_scale": _loss_scale,
    "weights": _weights,
    "compress": _compress,
    "autocast": _autocast,
    "masters": _bool,
    "shard": _shard,
    "update_in_backward": _bool_or_auto,
    "lr_scheduler": _lr_scheduler,
    "planner": _name,
    "cost_model": _name,
    "reserve": _reserve,
    "plan_seconds": _seconds,
}
