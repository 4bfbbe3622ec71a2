"""What a training step refuses of the user's optimizer, and of changes to it and to the model's parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch

from graphopt.base.errors import UsageError
from graphopt.device.dtypes import HALF


def check_held(
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    own: Mapping[str, torch.Tensor],
    *,
    wants_masters: bool,
) -> None:
    """Raise UsageError for what the optimizer holds and cannot be trained."""
    for group in optimizer.param_groups:
        for stepped in group["params"]:
            name = names.get(id(stepped))
            if name is None:
                raise UsageError(
                    f"the optimizer holds a parameter of shape {tuple(stepped.shape)} that is not the model's: "
                    "make the optimizer from model.parameters() after every change of them (.to(), .half())"
                )
            parameter = own[name]
            if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
                raise UsageError(
                    f"the parameter {name} has a hook on its gradient, which a training step does not call: "
                    "remove it, or use graphopt.optimize()"
                )
            if wants_masters and stepped.dtype in HALF:
                raise UsageError(
                    f"the parameter {name} is {stepped.dtype} and has no float32 master, as it was not so, or not "
                    "in the optimizer, when train_step() was built: build the step anew, with a new optimizer"
                )


def check_kinds(
    optimizer: torch.optim.Optimizer, kind: str, parameters: Iterable[torch.Tensor], before: Collection[torch.device]
) -> None:
    """Raise UsageError for parameters that were moved, and for state that was left in the dtype of before."""
    if moved := {parameter.device for parameter in parameters} - set(before):
        raise UsageError(
            f"parameters were moved to {min(map(str, moved))} after train_step() was built: build the step anew"
        )
    if kind == "step":  # it casts its state, or fails, itself
        return
    for stepped, held in optimizer.state.items():
        for key, tensor in held.items():
            is_like = isinstance(tensor, torch.Tensor) and tensor.shape == stepped.shape and tensor.ndim > 0
            if is_like and tensor.is_floating_point() and tensor.dtype != stepped.dtype:
                raise UsageError(
                    f"a parameter became {stepped.dtype} after train_step() was built, and the optimizer's {key} "
                    f"of it is {tensor.dtype}: optimizer.load_state_dict(optimizer.state_dict()) makes it alike"
                )


def check_not_replaced(
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    own: Mapping[str, torch.Tensor],
    now: Mapping[str, torch.Tensor],
    instead: Collection[str],
) -> None:
    """Raise UsageError where the optimizer still holds what is no longer the model's."""
    ids = {id(parameter) for parameter in now.values()}
    for stepped in (each for group in optimizer.param_groups for each in group["params"]):
        name = names.get(id(stepped))
        held = own[name] if name is not None and name in instead else stepped
        if name is None or (id(held) in ids and (held is stepped or now.get(name) is held)):
            continue
        if name not in now:
            raise UsageError(
                f"the parameter {name} was taken out of the model after train_step() was built, and the optimizer "
                "still holds it: take it out of optimizer.param_groups too, or build the step anew with a new "
                "optimizer"
            )
        raise UsageError(
            f"the parameter {name} was replaced after train_step() was built, by an assignment or by "
            "load_state_dict(..., assign=True), and the optimizer holds the old one, which nothing reads any more. "
            "Make a new optimizer from model.parameters() and build the step anew; load_state_dict() without "
            "assign=True keeps the parameters"
        )
