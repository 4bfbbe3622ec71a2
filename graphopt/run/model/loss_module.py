"""A module and its loss as one module, and example inputs as a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from graphopt.base.errors import UsageError
from graphopt.device.dtypes import HALF


class StepModule(nn.Module):
    """`loss_fn(model(*batch[:-1]), batch[-1])`; `loss_fn(model(**batch))` for keyword inputs.

    Without a loss function, the model's own output.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self._graphopt_model = model  # a name that cannot be the user's: see `own_name`
        self.loss_fn = loss_fn
        self.training = model.training

    @property
    def users_own(self) -> nn.Module:
        """The user's model."""
        return self._graphopt_model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """One micro-batch: its loss, or the model's output."""
        if self.loss_fn is None:
            return self._graphopt_model(*args, **kwargs)
        if args:
            return self.loss_fn(self._graphopt_model(*args[:-1], **kwargs), args[-1])
        return self.loss_fn(self._graphopt_model(**kwargs))


class LossModule(nn.Module):
    """The loss of a micro-batch and nothing else: what else the model returns is not kept for it.

    `autocast` is the dtype under which forward and loss run. A half loss is returned as float32, so that
    its gradient, the loss scale, does not overflow.
    """

    def __init__(
        self, model: nn.Module, loss_fn: Callable[..., Any] | None, device_type: str, autocast: torch.dtype | None
    ) -> None:
        super().__init__()
        self._graphopt_step = StepModule(model, loss_fn)
        self.device_type = device_type
        self.autocast = autocast
        self.training = model.training

    @property
    def users_own(self) -> nn.Module:
        """The user's model."""
        return self._graphopt_step.users_own

    @property
    def loss_fn(self) -> Callable[..., Any] | None:
        """The user's loss function."""
        return self._graphopt_step.loss_fn

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss; empty where the step has none."""
        if self.autocast is None:
            loss = _loss_in(self._graphopt_step(*args, **kwargs))
        else:
            with torch.autocast(self.device_type, self.autocast):
                loss = _loss_in(self._graphopt_step(*args, **kwargs))
        return loss.float() if loss.dtype in HALF else loss


def _loss_in(output: Any) -> torch.Tensor:
    """The output itself, its `.loss` or `["loss"]`, or the first of a tuple; an empty tensor where there is none.

    Raising here, inside what is captured, would look like a graph break.
    """
    if isinstance(output, Mapping):
        output = output.get("loss")
    elif isinstance(output, (tuple, list)):
        output = output[0]
    elif not isinstance(output, torch.Tensor):
        output = getattr(output, "loss", None)
    return output if isinstance(output, torch.Tensor) else torch.empty(0)


def wrong_arguments(module: LossModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """What is wrong with the arguments of a step, as its model or its loss function takes them; "" where nothing is."""
    loss_fn, name = module.loss_fn, type(module.users_own).__name__
    inputs, target = (args[:-1], args[-1:]) if loss_fn is not None else (args, ())
    hint = ". With a loss function the last positional argument is its target, the others are the model's"
    if problem := _unbound(module.users_own.forward, inputs, kwargs):
        return f"{name}.forward: {problem}{hint if loss_fn is not None else ''}"
    problem = _unbound(loss_fn, (None, *target), {}) if loss_fn is not None else ""
    return f"the loss function: {problem}{hint}" if problem else ""


def _unbound(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    except ValueError:  # it has no signature to look at
        pass
    return ""


def users_model(module: nn.Module) -> nn.Module:
    """The user's model in a step around it; a model itself."""
    return module.users_own if isinstance(module, (LossModule, StepModule)) else module


def as_call(example_inputs: Any, example_kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as positional and keyword arguments: a tensor, a tuple or list, or a dict by name."""
    kwargs = dict(example_kwargs or {})
    if example_inputs is None:
        return (), kwargs
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), kwargs
    if isinstance(example_inputs, Mapping):
        if not all(isinstance(key, str) for key in example_inputs):
            raise UsageError("example_inputs: the keys of a dict of keyword inputs must be names")
        return (), {**example_inputs, **kwargs}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), kwargs
    raise UsageError(f"example_inputs: expected a tensor, a tuple or a dict, got {type(example_inputs).__name__}")
