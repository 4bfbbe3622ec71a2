"""What a forward and backward change beside gradients: buffers, random generators, modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class State:
    """Copies of a model's buffers, by name, and the generators' states."""

    buffers: dict[str, torch.Tensor]
    cpu_generator: torch.Tensor
    cuda_generators: tuple[torch.Tensor, ...]


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


def snapshot(model: nn.Module) -> State:
    """Copy the buffers and the states of the CPU's and every CUDA device's generator.

    Into host memory: the copies live while a step is planned and run, and the device's memory is what is planned.
    """
    return State(
        {name: buffer.detach().to("cpu", copy=True) for name, buffer in model.named_buffers()},
        torch.get_rng_state(),
        tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else (),
    )


def restore(model: nn.Module, state: State) -> None:
    """Put a snapshot back, in place."""
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(state.buffers[name])
    torch.set_rng_state(state.cpu_generator)
    if state.cuda_generators:
        torch.cuda.set_rng_state_all(list(state.cuda_generators))
