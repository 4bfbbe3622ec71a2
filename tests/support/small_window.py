"""A training step's graph small enough to read: loss = (a·x + b·b).sum(), the gradients of a and b written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from graphopt.graph.roles import (
    DESCRIPTOR,
    ROLE,
    Given,
    OptimizerOption,
    OptimizerState,
    Scaling,
    Tangent,
    Weight,
    WindowGradient,
    add_input,
)

aten = torch.ops.aten


def small_window() -> fx.GraphModule:
    """One micro-batch, before any pass."""
    graph = fx.Graph()
    a, b, x = (add_input(graph, name, Given(i, name)) for i, name in enumerate("abx"))
    weight = add_input(graph, "weight_0", Weight(0))
    call = graph.call_function
    products = call(aten.add.Tensor, (call(aten.mul.Tensor, (a, x)), call(aten.mul.Tensor, (b, b))))
    loss = call(aten.sum.default, (products,))
    tangent = call(aten.scalar_tensor.default, (weight,), {"dtype": torch.float32})
    tangent.meta[ROLE] = Tangent(0)
    gradients = [call(aten.mul.Tensor, (tangent, x)), call(aten.mul.Tensor, (tangent, call(aten.mul.Tensor, (b, 2))))]
    for name, node in zip("ab", gradients, strict=True):
        node.meta[ROLE] = WindowGradient(name)
    graph.output((loss, None, None, gradients))
    return fx.GraphModule(nn.Module(), graph, "TrainingStep")


def feeds(
    window: fx.GraphModule, given: dict[str, torch.Tensor], options: dict[str, float], **others: Any
) -> list[Any]:
    """Arguments of a window: `given` by name, `options` by key, state and scaling by key or else new zeros."""
    found: list[Any] = []
    for node in window.graph.find_nodes(op="placeholder"):
        match node.meta[DESCRIPTOR]:
            case Given(_, name):
                found.append(given[name])
            case Weight():
                found.append(1.0)
            case OptimizerOption(_, key):
                found.append(options[key])
            case OptimizerState(parameter, key):
                found.append(others.setdefault(f"{key} of {parameter}", torch.zeros_like(given[parameter])))
            case Scaling(key):
                found.append(others[key])
    return found


def run_eager(
    given: dict[str, torch.Tensor],
    make: Callable[[list[torch.Tensor]], torch.optim.Optimizer],
    clip: Callable[[list[torch.Tensor]], object] | None = None,
) -> dict[str, torch.Tensor]:
    """The parameters a and b after one step of eager training, `clip` called on them before the update."""
    a, b = (given[name].clone().requires_grad_() for name in "ab")
    (a * given["x"] + b * b).sum().backward()
    if clip is not None:
        clip([a, b])
    make([a, b]).step()
    return {"a": a.detach(), "b": b.detach()}
