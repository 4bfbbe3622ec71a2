"""FSDP2 around a model, as the watch over its steps sees it: when it gathers and scatters, and what it then holds.

All that is private to PyTorch in this is here and in `run/model/wrapping.py`; where it has changed,
`tests/ddp/test_fsdp_watch.py` fails. Blocks that are sharded each for itself are measured each for itself: in its
forward and in its backward, with what it keeps between them, but without what other blocks keep or do meanwhile.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from graphopt.device.storages import unique_storage_bytes
from graphopt.run.model.wrapping import sharded_bytes
from graphopt.run.watch.causes import GRADIENTS, MESSAGES
from graphopt.run.watch.held_outputs import with_storage
from graphopt.run.watch.measured_step import StepInProgress


class HeedsSharding(Protocol):
    """Who is told: lives as long as somebody else holds it."""

    def gradient_arrives(self, gradient: torch.Tensor) -> None:
        """Before parameters are gathered for the backward."""

    def scatter_begins(self) -> None:
        """The backward has run, and FSDP2 begins to scatter its gradients."""

    def scatter_ends(self) -> None:
        """The gradients are with their shards."""


class Sharding:
    """What FSDP2 holds of one model, and what is allocated beside all that is the model's or FSDP2's (`base_bytes`).

    `kept_bytes` is what the model keeps between its forward and its backward.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.base_bytes, self.kept_bytes = 0, 0
        self._state, self._device = model._get_fsdp_state(), device  # type: ignore[operator]
        self._buffers = list(model.buffers())
        self._groups: list[Any] = []

    @property
    def is_root(self) -> bool:
        """Whether nothing else of a sharded model runs between this one's forward and its backward."""
        return bool(self._state._is_root)

    def begins(self, live_bytes: int, inputs: list[torch.Tensor], state_bytes: int) -> StepInProgress:
        """A step begins, with parameters gathered, so many bytes allocated, and optimizers holding `state_bytes`."""
        step = StepInProgress(0, 0, 0, 0, self.base_bytes)
        step.settled_bytes, step.gradient_bytes = live_bytes, self.gradient_bytes()
        step.is_end = not any(tensor.requires_grad for tensor in inputs)
        if self.is_root and self._device.type == "cuda":
            step.start_bytes = self.base_bytes
        else:
            given_bytes = unique_storage_bytes(with_storage(inputs), self._device)
            step.start_bytes = self.start_bytes() + given_bytes + step.gradient_bytes
            step.state_bytes = state_bytes
        return step

    def held_beside(self, step: StepInProgress) -> dict[str, int]:
        """What FSDP2 held beside the planned graph, more than a plan has for it, and gradients of earlier backwards."""
        messages = sum(step.messages.values()) - self.planned_message_bytes()
        return {MESSAGES: max(messages, 0), GRADIENTS: step.gradient_bytes}

    def start_bytes(self) -> int:
        """What is there all the time: this rank's shards, and buffers."""
        shards = [parameter._sharded_param_data for parameter in self._sharded_parameters()]
        return unique_storage_bytes([*shards, *self._buffers], self._device)

    def gradient_bytes(self) -> int:
        """Gradients that are there, scattered or not yet."""
        held = []
        for parameter in self._sharded_parameters():
            whole = getattr(parameter, "_unsharded_param", None)
            held += [parameter.unsharded_accumulated_grad, parameter.sharded_param.grad]
            held += [whole.grad] if whole is not None else []
        return unique_storage_bytes((gradient for gradient in held if gradient is not None), self._device)

    def of_block(self) -> str:
        """Which part of the whole sharded model this is, for people; "" where it is all of it."""
        names = (group._module_fqn for group in self._state._fsdp_param_groups)
        return "" if self.is_root else f", of {next((name for name in names if name), 'a block')!r}"

    def planned_message_bytes(self) -> int:
        """What a plan has for messages."""
        return sharded_bytes(self._state)["FSDP2 messages"]

    def messages(self) -> dict[str, int]:
        """Messages between the ranks that are there now, of whichever block, by kind."""
        context = self._state._comm_ctx
        scattered = [each.reduce_scatter_input for each in getattr(context, "reduce_scatter_states", ())]
        last = getattr(context, "all_gather_state", None)
        arrived = [last.all_gather_result.all_gather_output] if last else []
        results = [group._all_gather_result for group in self._all_groups()]
        kinds = {
            "reduce-scatter inputs": scattered,
            "gathered parameters as they arrived": arrived,
            "prefetched blocks": [result.all_gather_output for result in results if result],
        }
        return {kind: unique_storage_bytes(tensors, self._device) for kind, tensors in kinds.items()}

    def arrives(self, live_bytes: int) -> None:
        """The model is called."""
        self.base_bytes = live_bytes - sum(self.messages().values())

    def departs(self, live_bytes: int) -> None:
        """The forward has run, and what it had gathered is freed."""
        self.kept_bytes = live_bytes - sum(self.messages().values()) - self.base_bytes

    def returns(self, live_bytes: int) -> None:
        """Its backward begins, behind those of other blocks."""
        self.base_bytes = live_bytes - sum(self.messages().values()) - self.kept_bytes

    def _all_groups(self) -> list[Any]:
        """Of all that is sharded together: known as soon as the whole of it was called."""
        states = self._state._state_ctx.all_states
        if not self._groups:
            self._groups = [group for state in states for group in state._fsdp_param_groups]
        return self._groups

    def _sharded_parameters(self) -> list[Any]:
        return [parameter for group in self._state._fsdp_param_groups for parameter in group.fsdp_params]


def heed_sharding(model: nn.Module, heeding: HeedsSharding) -> None:
    """Tell `heeding` of each backward of a sharded model, from before it gathers to when it has scattered."""
    who, state = weakref.ref(heeding), model._get_fsdp_state()  # type: ignore[operator]
    gathers = state._pre_backward

    def before_gathering(gradient: torch.Tensor) -> torch.Tensor:
        if (told := who()) is not None:
            told.gradient_arrives(gradient)
        return gathers(gradient)  # type: ignore[no-any-return]

    state._pre_backward = before_gathering
    for group in state._fsdp_param_groups[:1]:  # the last of them to be scattered
        group.post_backward = _told_of(group.post_backward, who)


def _told_of(scatters: Callable[..., None], who: weakref.ref[HeedsSharding]) -> Callable[..., None]:
    def scatters_and_tells(*unused: Any) -> None:
        if (told := who()) is not None:
            told.scatter_begins()
        scatters(*unused)
        if told is not None:
            told.scatter_ends()

    return scatters_and_tells
