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
from graphopt.device.storages import laid_out_like, local_of
from graphopt.kernels.streaming.blocks import block_elements
from graphopt.passes.window.update import GroupUpdate
from graphopt.step.optimizer.count_bytes import counts_on_cpu_bytes, counts_on_device_bytes
from graphopt.step.optimizer.optimizer_checks import check_held, check_kinds, check_not_replaced
from graphopt.step.optimizer.optimizer_step import check_step_takes_no_closure, kind_of_step
from graphopt.step.optimizer.parameters_seen import difference, parameters_seen
from graphopt.step.optimizer.state_elsewhere import StateElsewhere
from graphopt.step.tensor_parallel.shards import check_state

#: Flags that change from step to step, and are inputs of graphs.
_FIRSTS = frozenset({("first", False), ("first", True)})


class OptimizerView:
    """Parameters by name, their masters, state and options, always read from the optimizer as it is now.

    With `masters` the half parameters of the optimizer's groups are replaced by float32 copies, which
    it then updates; the model's are rounded from them. Raises UsageError for parameters that are not
    the model's, and where masters come too late.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        *,
        masters: bool,
        rows: Mapping[str, nn.Parameter] | None = None,
        sums_whole: bool = False,
        elsewhere: StateElsewhere | None = None,
    ) -> None:
        self.optimizer, self._model, self._wants_masters = optimizer, model, masters
        self.elsewhere = elsewhere  # where state is that does not stay on the device
        self._take(dict(model.named_parameters()))
        self.masters: dict[str, torch.Tensor] = {}
        #: What the optimizer holds of parameters of which it updates this rank's rows alone.
        self.rows, self._sums_whole = rows or {}, sums_whole
        self._pending: dict[str, dict[str, torch.Tensor]] = {}
        self._seen = parameters_seen(model)
        self._names_of_held = self._names_of_stepped()
        check_held(self.optimizer, self._names_of_held, self.own, wants_masters=False)
        check_step_takes_no_closure(optimizer)
        if masters:
            self._make_masters()
            self._names_of_held = self._names_of_stepped()
        self._adopt()
        if elsewhere is not None:
            elsewhere.heed_loads(optimizer, self._adopt)

    @property
    def kind(self) -> str:
        """ "adam" or "sgd" where a fused op does what this optimizer does, else "step"."""
        return kind_of_step(self.optimizer)

    def heeds_changes(self, *, may_grow: bool) -> bool:
        """Look at what became of the model and the optimizer since; whether the parameters are others than before.

        Raises UsageError for what cannot be trained as a loop would, and, unless it `may_grow`, for other parameters.
        """
        seen = parameters_seen(self._model)
        if is_changed := seen != self._seen:
            now = dict(self._model.named_parameters())
            names = _names_of_shards(now)
            check_not_replaced(self.optimizer, self._names_of_held, self.own, now, {*self.masters, *self.rows})
            if not may_grow and names != self.names:
                what = difference(self.names, names)
                raise UsageError(
                    f"the model's parameters were changed after train_step() was built ({what}): build the step anew, "
                    "which gives all ranks the first one's"
                )
            check_kinds(self.optimizer, self.kind, now.values(), {device for _, _, _, device in self._seen})
            self._take(now)
            self._seen = seen
            self._names_of_held = self._names_of_stepped()
            self._pending.clear()
        check_held(self.optimizer, self._names_of_held, self.own, wants_masters=self._wants_masters)
        self._adopt()
        return is_changed

    def trains(self, item: object) -> bool:
        """Whether `item` is a parameter of the model that this optimizer updates."""
        return id(item) in self.names and self.names[id(item)] in self.trained

    def groups(self) -> list[GroupUpdate]:
        """How each group is updated in the next step; momentum that does not exist yet stands apart."""
        found, kind = [], self.kind
        for number, group in enumerate(self.optimizer.param_groups):
            names = [self.name_of(parameter) for parameter in group["params"]]
            for first in (False, True):
                chosen = tuple(name for name in names if (kind == "sgd" and self.is_first(name)) is first)
                if chosen:
                    found.append(self._group(number, group, chosen, kind, first))
        return found

    def update_kind(self, *, in_backward: bool) -> object:
        """Equal while what is planned for, or written into graphs that update, is the same."""
        if not in_backward:
            return self.kind
        groups = self.groups()
        hows = frozenset((g.group, g.kind, g.state, g.elsewhere, frozenset(g.flags) - _FIRSTS) for g in groups)
        return hows, frozenset((name, g.group) for g in groups for name in g.parameters)

    def option(self, group: int, key: str) -> float:
        """A number of a group, as the LR scheduler left it."""
        options = self.optimizer.param_groups[group]
        if key in ("beta1", "beta2"):
            return float(options["betas"][key == "beta2"])
        return float(options[key])

    def state(self, name: str, key: str) -> torch.Tensor:
        """One tensor of a parameter's state; made, but not yet the optimizer's, where there is none."""
        stepped = self.held(name)
        held = self.optimizer.state.get(stepped, {})
        if held.get(key) is None:
            pending = self._pending.setdefault(name, {})
            if key not in pending:
                is_away = key != "step" and self.elsewhere is not None and self.elsewhere.takes(stepped)
                pending[key] = self.elsewhere.new(stepped) if is_away else _new_state(stepped, key)  # type: ignore[union-attr]
            return local_of(pending[key])
        found: torch.Tensor = held[key]
        check_state(f"{key} of {name}", found, stepped)
        return local_of(found)

    def is_first(self, name: str) -> bool:
        """Whether SGD has no momentum for a parameter yet: its first step takes the gradient as it is."""
        return self.optimizer.state.get(self.held(name), {}).get("momentum_buffer") is None

    def held(self, name: str) -> torch.Tensor:
        """What the optimizer holds for a parameter: its master, or itself."""
        return self.masters[name] if name in self.masters else self.rows.get(name, self.own[name])

    def stepped(self, name: str) -> torch.Tensor:
        """What is updated for a parameter: what the optimizer holds, or, of a DTensor, this rank's shard."""
        return local_of(self.held(name))

    def master(self, name: str) -> torch.Tensor:
        """A parameter's master, or this rank's shard of it."""
        return local_of(self.masters[name])

    def summed(self, name: str) -> torch.Tensor:
        """What the sum of its gradients is as large as: what the optimizer holds, or all of the parameter."""
        return self.parameters[name] if self._sums_whole else self.stepped(name)

    def rounded(self, name: str) -> torch.Tensor:
        """What its master is rounded into: as much of the parameter as the optimizer holds."""
        return self.rows.get(name, self.parameters[name])

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
            held = self.optimizer.state[self.held(name)]
            held.update({key: tensor for key, tensor in tensors.items() if held.get(key) is None})
        self._pending.clear()

    def step(self, gradients: list[torch.Tensor], names: Sequence[str]) -> None:
        """Let the optimizer itself step on finished gradients, which it finds where it looks for them.

        The list is emptied, so that a half gradient is gone as soon as its master has it.
        """
        held = [self.held(name) for name in names]
        try:
            for parameter in reversed(held):
                parameter.grad = laid_out_like(gradients.pop().to(parameter.dtype), parameter)
            self.optimizer.step()
        finally:
            for parameter in held:
                parameter.grad = None
        with torch.no_grad():
            for name in names:
                if name in self.masters:
                    self.rounded(name).copy_(self.master(name))

    def state_bytes(self, names: Iterable[str]) -> int:
        """Bytes of the optimizer's state: real where it is there, else what it will be for parameters `names`."""
        stepped = {id(parameter): parameter for parameter in map(self.held, names)}
        away = {key for key, parameter in stepped.items() if self.elsewhere and self.elsewhere.takes(parameter)}
        known = optimizer_bytes(self.optimizer, learns=lambda p: id(p) in stepped and id(p) not in away)
        if self.kind != "adam":
            return known
        return (
            known + counts_on_device_bytes(self.optimizer, stepped.values()) + counts_on_cpu_bytes(self.optimizer, away)
        )

    @property
    def trained(self) -> frozenset[str]:
        """The parameters that the optimizer holds now."""
        return frozenset(self.name_of(p) for group in self.optimizer.param_groups for p in group["params"])

    def name_of(self, stepped: torch.Tensor) -> str:
        """The name of the parameter that the optimizer holds as `stepped`: itself, or as its master."""
        return self._names_of_held[id(stepped)]

    @property
    def ways(self) -> tuple[tuple[str, str], ...]:
        """What the report says of where the state is."""
        if self.elsewhere is None:
            return ()
        kinds = {name: sum(key != "step" for key in group.state) for group in self.groups() for name in group.elsewhere}
        stepped = {name: self.stepped(name) for name in kinds}
        return self.elsewhere.ways(sum(kinds[n] * each.numel() * each.dtype.itemsize for n, each in stepped.items()))

    def _group(
        self, number: int, group: Mapping[str, Any], names: tuple[str, ...], kind: str, first: bool
    ) -> GroupUpdate:
        masters = frozenset(self.masters)
        state: tuple[str, ...] = ()
        flags: dict[str, bool] = {}
        if kind == "adam":
            state = ("exp_avg", "exp_avg_sq", "step", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))
            flags = {"amsgrad": group["amsgrad"], "maximize": group["maximize"], "decoupled": _is_decoupled(group)}
        elif kind == "sgd":
            state = ("momentum_buffer",) if group["momentum"] else ()
            flags = {"nesterov": group["nesterov"], "maximize": group["maximize"], "first": first}
        away = [name for name in names if self.elsewhere and state and self.elsewhere.takes(self.stepped(name))]
        most_elements = block_elements(sum(self.stepped(name).numel() for name in away)) if away else 0
        how = tuple(flags.items()), state, masters, frozenset(away), most_elements
        return GroupUpdate(number, kind, names, *how)

    def _adopt(self) -> None:
        """State that the user made or loaded goes to where it is to be."""
        if self.elsewhere is None:
            return
        for group in self.groups():
            for name in group.elsewhere:
                stepped = self.stepped(name)
                if state := self.optimizer.state.get(stepped):
                    self.elsewhere.adopt(state, stepped, (key for key in group.state if key != "step"))

    def _make_masters(self) -> None:
        if self.optimizer.state:
            raise UsageError(
                "masters=True needs an optimizer that has not stepped yet: its state is that of the masters"
            )
        names = self._names_of_stepped()
        for group in self.optimizer.param_groups:
            for position, parameter in enumerate(group["params"]):
                name = names.get(id(parameter))
                if parameter.dtype in HALF and name is not None:
                    master = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
                    self.masters[name] = master
                    group["params"][position] = master

    def drop_masters(self) -> None:
        """Let the optimizer hold the parameters, or rows of them, again: there will be no step."""
        for group in self.optimizer.param_groups:
            for position, held in enumerate(group["params"]):
                if (name := self._names_of_held.get(id(held))) in self.masters:
                    group["params"][position] = self.rows.get(name, self.own[name])
        self.masters.clear()

    def _take(self, own: dict[str, nn.Parameter]) -> None:
        """These are the model's parameters; of DTensors this rank's shards are what graphs read and update."""
        self.own = own
        self.parameters: dict[str, torch.Tensor] = {name: local_of(parameter) for name, parameter in own.items()}
        self.names = _names_of_shards(own)

    def _names_of_stepped(self) -> dict[int, str]:
        held = (*self.own.items(), *self.masters.items(), *self.rows.items())
        return {id(stepped): name for name, stepped in held}


def _names_of_shards(own: Mapping[str, nn.Parameter]) -> dict[int, str]:
    return {id(local_of(parameter)): name for name, parameter in own.items()}


def _is_decoupled(group: Mapping[str, Any]) -> bool:
    return bool(group.get("decoupled_weight_decay", False))


def _new_state(stepped: torch.Tensor, key: str) -> torch.Tensor:
    if key == "step":
        return torch.zeros((), dtype=torch.float32, device=stepped.device)
    return torch.zeros_like(stepped, memory_format=torch.preserve_format).detach()
