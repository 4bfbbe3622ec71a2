"""What is on the device before a step starts, by kind, in bytes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable

import torch

from graphopt.base.errors import CaptureError
from graphopt.device.storages import storage_bytes, storage_key, stored_parts, tensors_in, unique_storage_bytes
from graphopt.graph.nodes import own_name
from graphopt.graph.step_graph import StepGraph, tensors_of
from graphopt.plan.workspaces import take_workspaces

#: Room for the few numbers around a graph, the loss and what it is multiplied by; a block each on CUDA.
LOOSE_BYTES = 512
CUDA_LOOSE_BYTES = 16 * 512


def loose_bytes(device: torch.device) -> int:
    """Room for the few numbers that a training loop makes around a graph."""
    return CUDA_LOOSE_BYTES if device.type == "cuda" else LOOSE_BYTES


def with_gradients(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that hold a gradient; what `functional_call` puts in their place holds none.

    Asked at every step: `model.parameters()` takes five times as long, as it makes up names.
    """
    found: dict[torch.nn.Parameter, None] = {}
    seen, waiting = {model}, [model]
    while waiting:
        module = waiting.pop()
        for parameter in module._parameters.values():
            if parameter is not None and parameter.is_leaf and parameter.grad is not None:
                found[parameter] = None
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)
    return list(found)


def resident_of_graph(step: StepGraph) -> dict[str, int]:
    """Parameters, buffers and inputs, as far as the graph's own inputs show them; on CUDA all that is there besides."""
    kinds: dict[str, int] = {"parameters": 0, "buffers": 0, "inputs": 0, "other": 0}
    seen: set[int] = set()
    gradients = step.joint.gradients
    for position, node in enumerate(step.joint.primals):
        for tensor in tensors_of(node):
            if storage_key(tensor) in seen:
                continue
            seen.add(storage_key(tensor))
            static = "parameters" if position in gradients else "buffers"
            kinds[static if node.name in step.static_inputs else "inputs"] += storage_bytes(tensor, step.device)
    take_workspaces([step], step.device, in_autograd=True)
    beside = _allocated_bytes(step.device) - sum(kinds.values())
    return {**kinds, "other": max(0, beside) + loose_bytes(step.device)}


def resident_of_model(model: torch.nn.Module, inputs: object, device: torch.device) -> dict[str, int]:
    """All of a model's parameters and buffers, and the tensors in `inputs`; each storage once."""
    seen: set[int] = set()

    def count(tensors: Iterable[torch.Tensor]) -> int:
        total = 0
        for part in (part for tensor in tensors for part in stored_parts(tensor)):
            if storage_key(part) not in seen:
                seen.add(storage_key(part))
                total += storage_bytes(part, device)
        return total

    parameters = count(model.parameters())
    buffers = count(model.buffers())
    given = count(tensors_in(inputs))
    return {"parameters": parameters, "buffers": buffers, "inputs": given}


def other_bytes(
    model: torch.nn.Module,
    inputs: object,
    optimizer: torch.optim.Optimizer | None,
    device: torch.device,
    held: Iterable[torch.Tensor] = (),
) -> int:
    """On CUDA, what is allocated beside all that is counted by name: workspaces of libraries, the user's own.

    Those must be there already (`take_workspaces`). Gradients do not count: the plan has them; nor do tensors of our
    own that are `held`.
    Elsewhere only the single numbers that a training loop makes around the graph: its loss, and the gradient of that.
    """
    if device.type != "cuda":
        return LOOSE_BYTES
    state = [] if optimizer is None else [value for entry in optimizer.state.values() for value in entry.values()]
    gradients = [parameter.grad for parameter in with_gradients(model)]
    tensors = [*model.parameters(), *model.buffers(), *tensors_in(inputs), *state, *gradients, *held]
    known = unique_storage_bytes((t for t in tensors if isinstance(t, torch.Tensor)), device)
    return max(0, _allocated_bytes(device) - known) + CUDA_LOOSE_BYTES


def _allocated_bytes(device: torch.device) -> int:
    """What is allocated on a CUDA device now and not garbage, 0 elsewhere."""
    if device.type != "cuda":
        return 0
    gc.collect()
    torch.cuda.synchronize(device)
    return torch.cuda.memory_allocated(device)


def check_devices(model: torch.nn.Module, inputs: object) -> None:
    """Raise CaptureError where the model and its inputs are not on one device; single numbers may be anywhere."""
    first: dict[str, str] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        first.setdefault(str(tensor.device), f"{own_name(name)!r}")
    for tensor in tensors_in(inputs):
        if tensor.ndim > 0:
            first.setdefault(str(tensor.device), f"an input of shape {tuple(tensor.shape)}")
    if len(first) > 1:
        found = "; ".join(f"{what} is on {device}" for device, what in first.items())
        raise CaptureError(f"the model and its inputs must be on one device: {found}")


def device_total_bytes(device: torch.device) -> int | None:
    """The device's memory; None where it cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
