"""A training step's view of the user's optimizer: how its groups are updated, and on which tensors.

State stays the optimizer's own. What does not exist before the first step is made here, and becomes
the optimizer's when a step was really taken: a first step that is skipped leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from graphopt.base.errors import UsageError
from graphopt.cost_models.model_state import optimizer_bytes
from graphopt.device.dtypes import HALF
from graphopt.device.storages import allocated_bytes
from graphopt.passes.window.update import GroupUpdate


class OptimizerView:
    """Parameters by name, their masters, state and options, always read from the optimizer as it is now.

    With `masters` the half parameters of the optimizer's groups are replaced by float32 copies, which
    it then updates; the model's are rounded from them. Raises UsageError for parameters that are not
    the model's, and where masters come too late.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, *, masters: bool) -> None:
        self.optimizer = optimizer
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.parameters = dict(model.named_parameters())
        self.masters: dict[str, torch.Tensor] = {}
        self._pending: dict[str, dict[str, torch.Tensor]] = {}
        if masters:
            self._make_masters()
        self._stepped_names = {**self.names, **{id(master): name for name, master in self.masters.items()}}
        self._check()

    @property
    def kind(self) -> str:
        """ "adam" or "sgd" where a fused op does what this optimizer does, else "step"."""
        known = {torch.optim.Adam: "adam", torch.optim.AdamW: "adam", torch.optim.SGD: "sgd"}
        differentiable = any(group.get("differentiable") for group in self.optimizer.param_groups)
        hooked = self.optimizer._optimizer_step_pre_hooks or self.optimizer._optimizer_step_post_hooks
        return "step" if differentiable or hooked else known.get(type(self.optimizer), "step")

    def trains(self, item: object) -> bool:
        """Whether `item` is a parameter of the model that this optimizer updates."""
        return id(item) in self.names and self.names[id(item)] in self.trained

    def groups(self) -> list[GroupUpdate]:
        """How each group is updated in the next step; momentum that does not exist yet stands apart."""
        found = []
        for number, group in enumerate(self.optimizer.param_groups):
            names = [self.name_of(parameter) for parameter in group["params"]]
            for first in (False, True):
                chosen = tuple(name for name in names if self.is_first(name) is first)
                if chosen:
                    found.append(self._group(number, group, chosen, first))
        return found

    def option(self, group: int, key: str) -> float:
        """A number of a group, as the LR scheduler left it."""
        options = self.optimizer.param_groups[group]
        if key in ("beta1", "beta2"):
            return float(options["betas"][key == "beta2"])
        return float(options[key])

    def state(self, name: str, key: str) -> torch.Tensor:
        """One tensor of a parameter's state; made, but not yet the optimizer's, where there is none."""
        stepped = self.stepped(name)
        held = self.optimizer.state.get(stepped, {})
        if held.get(key) is None:
            pending = self._pending.setdefault(name, {})
            if key not in pending:
                pending[key] = _new_state(stepped, key)
            return pending[key]
        return held[key]  # type: ignore[no-any-return]

    def is_first(self, name: str) -> bool:
        """Whether SGD has no momentum for a parameter yet: its first step takes the gradient as it is."""
        return self.kind == "sgd" and self.optimizer.state.get(self.stepped(name), {}).get("momentum_buffer") is None

    def stepped(self, name: str) -> torch.Tensor:
        """What the optimizer holds for a parameter: its master, or itself."""
        return self.masters.get(name, self.parameters[name])

    @property
    def unpublished(self) -> bool:
        """Whether state was made that is not yet the optimizer's."""
        return bool(self._pending)

    @property
    def unpublished_state(self) -> tuple[torch.Tensor, ...]:
        """State that was made and is not yet the optimizer's."""
        return tuple(tensor for tensors in self._pending.values() for tensor in tensors.values())

    def publish(self) -> None:
        """A step was taken: what was made for it is the optimizer's state now.

        Made for a step that was skipped, it may have been loaded since.
        """
        for name, tensors in self._pending.items():
            held = self.optimizer.state[self.stepped(name)]
            held.update({key: tensor for key, tensor in tensors.items() if held.get(key) is None})
        self._pending.clear()

    def step(self, gradients: list[torch.Tensor], names: Sequence[str]) -> None:
        """Let the optimizer itself step on finished gradients, which it finds where it looks for them.

        The list is emptied, so that a half gradient is gone as soon as its master has it.
        """
        stepped = [self.stepped(name) for name in names]
        try:
            for parameter in reversed(stepped):
                parameter.grad = gradients.pop().to(parameter.dtype)
            self.optimizer.step()
        finally:
            for parameter in stepped:
                parameter.grad = None
        with torch.no_grad():
            for name in names:
                if name in self.masters:
                    self.parameters[name].copy_(self.masters[name])

    def state_bytes(self, names: Iterable[str]) -> int:
        """Bytes of the optimizer's state: real where it is there, else what it will be for parameters `names`."""
        stepped = {id(parameter): parameter for parameter in map(self.stepped, names)}
        known = optimizer_bytes(self.optimizer, learns=lambda parameter: id(parameter) in stepped)
        return known + self._count_bytes(stepped.values())

    def _count_bytes(self, stepped: Iterable[torch.Tensor]) -> int:
        """Step counts that are made on the device, where the optimizer's own would be on the CPU."""
        if self.kind != "adam":
            return 0
        elsewhere = {
            id(parameter)
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.device.type != "cpu" and not (group.get("fused") or group.get("capturable"))
        }
        made = [p for p in stepped if id(p) in elsewhere and "step" not in self.optimizer.state.get(p, {})]
        return sum(allocated_bytes(4, parameter.device) for parameter in made)

    @property
    def trained(self) -> frozenset[str]:
        """The parameters that the optimizer holds now."""
        return frozenset(self.name_of(p) for group in self.optimizer.param_groups for p in group["params"])

    def name_of(self, stepped: torch.Tensor) -> str:
        """The name of the parameter that the optimizer holds as `stepped`: itself, or as its master."""
        return self._stepped_names[id(stepped)]

    def _group(self, number: int, group: Mapping[str, Any], names: tuple[str, ...], first: bool) -> GroupUpdate:
        kind, masters = self.kind, frozenset(self.masters)
        state: tuple[str, ...] = ()
        flags: dict[str, bool] = {}
        if kind == "adam":
            state = ("exp_avg", "exp_avg_sq", "step", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))
            flags = {"amsgrad": group["amsgrad"], "maximize": group["maximize"], "decoupled": _is_decoupled(group)}
        elif kind == "sgd":
            state = ("momentum_buffer",) if group["momentum"] else ()
            flags = {"nesterov": group["nesterov"], "maximize": group["maximize"], "first": first}
        return GroupUpdate(number, kind, names, tuple(flags.items()), state, masters)

    def _make_masters(self) -> None:
        if self.optimizer.state:
            raise UsageError(
                "masters=True needs an optimizer that has not stepped yet: its state is that of the masters"
            )
        for group in self.optimizer.param_groups:
            for position, parameter in enumerate(group["params"]):
                if parameter.dtype in HALF and id(parameter) in self.names:
                    master = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
                    self.masters[self.names[id(parameter)]] = master
                    group["params"][position] = master

    def _check(self) -> None:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in self._stepped_names:
                    raise UsageError(
                        f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that is not the model's: "
                        "make the optimizer from model.parameters() after every change of them (.to(), .half())"
                    )
        for name in sorted(self.trained):
            if self.parameters[name]._backward_hooks or self.parameters[name]._post_accumulate_grad_hooks:
                raise UsageError(
                    f"the parameter {name} has a hook on its gradient, which a training step does not call: remove it, "
                    "or use graphopt.optimize()"
                )


def _is_decoupled(group: Mapping[str, Any]) -> bool:
    return bool(group.get("decoupled_weight_decay", False))


def _new_state(stepped: torch.Tensor, key: str) -> torch.Tensor:
    if key == "step":
        return torch.zeros((), dtype=torch.float32, device=stepped.device)
    return torch.zeros_like(stepped, memory_format=torch.preserve_format).detach()
