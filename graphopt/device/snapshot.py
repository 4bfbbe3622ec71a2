"""What a forward and backward change beside gradients: buffers, random generators, attributes, modes."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphopt.device.storages import unique_storage_bytes

#: Attributes that every module has: they hold parameters, buffers, children and hooks.
_OF_TORCH = frozenset(vars(nn.Module())) - {"training"}


@dataclass(frozen=True)
class State:
    """Copies of a model's buffers, by name, and the generators' states: torch's, Python's and NumPy's.

    `attributes` are those of each module, and what lists, dicts, sets and deques among them held; `hooks` are those of
    each parameter, before it gets its gradient and behind that; `own_generators` are those among attributes and inputs.
    What else a forward changes in Python, through closures and globals, is not known.
    """

    buffers: dict[str, torch.Tensor]
    cpu_generator: torch.Tensor
    cuda_generators: tuple[torch.Tensor, ...]
    python_generators: tuple[Any, Any]
    attributes: tuple[tuple[nn.Module, dict[str, Any], dict[str, Any]], ...]
    hooks: tuple[tuple[nn.Parameter, tuple[Any, Any]], ...]
    own_generators: tuple[tuple[torch.Generator, torch.Tensor], ...] = ()

    @property
    def host_bytes(self) -> int:
        """What the copies take of the host's memory."""
        generators = [self.cpu_generator, *self.cuda_generators, *(copied for _, copied in self.own_generators)]
        return unique_storage_bytes((*self.buffers.values(), *generators), torch.device("cpu"))


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Inside, a model in eval mode trains; one that trains stays as it is, with what is frozen inside it."""
    modes = [] if model.training else [(module, module.training) for module in model.modules()]
    if modes:
        model.train()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def snapshot(model: nn.Module, inputs: object = ()) -> State:
    """Copy the buffers, the states of the generators, those in `inputs` too, and the modules' attributes.

    Into host memory: the copies live while a step is planned and run, and the device's memory is what is planned.
    """
    found = pytree.tree_leaves((inputs, [list(vars(module).values()) for module in model.modules()]))
    own = {id(each): each for each in found if isinstance(each, torch.Generator)}
    return State(
        {name: buffer.detach().to("cpu", copy=True) for name, buffer in model.named_buffers() if not buffer.is_meta},
        torch.get_rng_state(),
        tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else (),
        python_generators(),
        tuple((module, *_attributes(module)) for module in model.modules()),
        tuple((parameter, _hooks_of(parameter)) for parameter in model.parameters()),
        tuple((generator, generator.get_state()) for generator in own.values()),
    )


@contextmanager
def undone(model: nn.Module, inputs: object) -> Iterator[None]:
    """What forwards inside change, as far as it is known, is put back at the end."""
    before = snapshot(model, inputs)
    try:
        yield
    finally:
        restore(model, before)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Inside is work of ours, whose imports may draw too: at the end the generators are where they were."""
    in_python, on_cpu = python_generators(), torch.default_generator.get_state()
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(in_python[0])
        np.random.set_state(in_python[1])
        torch.default_generator.set_state(on_cpu)
        if on_cuda:
            torch.cuda.set_rng_state_all(on_cuda)


def python_generators() -> tuple[Any, Any]:
    """The states of Python's and of NumPy's generators."""
    return random.getstate(), np.random.get_state()


def restore(model: nn.Module, state: State) -> None:
    """Put a snapshot back, in place."""
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if not buffer.is_meta:  # has nothing to be put back
                buffer.copy_(state.buffers[name])
    torch.set_rng_state(state.cpu_generator)
    if state.cuda_generators:
        torch.cuda.set_rng_state_all(list(state.cuda_generators))
    random.setstate(state.python_generators[0])
    np.random.set_state(state.python_generators[1])
    for generator, own_state in state.own_generators:
        generator.set_state(own_state)
    for module, attributes, contents in state.attributes:
        _put_back(module, attributes, contents)
    for parameter, hooks in state.hooks:
        if _hooks_of(parameter) != hooks:
            parameter._backward_hooks, parameter._post_accumulate_grad_hooks = hooks


def _hooks_of(parameter: nn.Parameter) -> tuple[Any, Any]:
    """Copies of the dicts of its hooks; None where it has none."""
    both = parameter._backward_hooks, parameter._post_accumulate_grad_hooks
    return both[0] and both[0].copy(), both[1] and both[1].copy()


def _attributes(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attributes as they are, and copies of what containers among them hold."""
    found = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    return found, {name: value.copy() for name, value in found.items() if type(value) in (list, dict, set, deque)}


def _put_back(module: nn.Module, attributes: dict[str, Any], contents: dict[str, Any]) -> None:
    now = vars(module)
    for name in [name for name in now if name not in _OF_TORCH and name not in attributes]:
        del now[name]
    for name, value in attributes.items():
        if now.get(name, now) is not value:
            now[name] = value
    for name, held in contents.items():
        value = attributes[name]
        if value != held:
            value.clear()
            value.extend(held) if isinstance(value, (list, deque)) else value.update(held)
