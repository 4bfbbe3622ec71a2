"""Hooks on tensors, put there by the forward of a model that breaks: before a break, behind it, and on parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import graphopt
from tests.support.residual_blocks import same_gradients

Forward = Callable[["Hooked", Tensor], Tensor]
cut = torch._dynamo.graph_break


class Hooked(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.b, self.given = nn.Linear(64, 64), nn.Linear(64, 64), forward
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.given(self, x).square().sum()


def before_a_break(m: Hooked, x: Tensor) -> Tensor:
    h = m.a(x)
    h.register_hook(lambda grad: grad * 2)
    cut()
    return m.b(h)


def behind_a_break(m: Hooked, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    h.register_hook(lambda grad: grad * 2)
    return m.b(h)


def on_both_sides(m: Hooked, x: Tensor) -> Tensor:
    h = m.a(x)
    h.register_hook(lambda grad: grad * 2)
    cut()
    y = m.b(h)
    y.register_hook(lambda grad: grad + 1)
    return y


def that_notes(m: Hooked, x: Tensor) -> Tensor:
    h = m.a(x)
    h.register_hook(lambda grad: m.seen.append(grad.norm().item()))
    cut()
    return m.b(h)


@torch._dynamo.disable
def hook(h: Tensor) -> None:
    h.register_hook(lambda grad: grad * 2)


def between_graphs(m: Hooked, x: Tensor) -> Tensor:
    h = m.a(x)
    hook(h)
    return m.b(h)


def on_several(m: Hooked, x: Tensor) -> Tensor:
    h = m.a(x)
    y = m.b(h)
    torch.autograd.graph.register_multi_grad_hook((h, y), lambda grads: m.seen.append(len(grads)))
    cut()
    return m.b(h) + y


def on_a_node(m: Hooked, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    h.grad_fn.register_hook(lambda _inputs, outputs: m.seen.append(len(outputs)))  # type: ignore[union-attr]
    return m.b(h)


def on_a_parameter_once(m: Hooked, x: Tensor) -> Tensor:
    h = m.a(x)
    if not m.seen:
        m.a.weight.register_hook(lambda grad: grad * 2)
    m.seen.append(1)
    cut()
    return m.b(h)


def behind_the_gradient(m: Hooked, x: Tensor) -> Tensor:
    h = m.a(x)
    m.a.weight.register_post_accumulate_grad_hook(lambda _parameter: m.seen.append(1))
    cut()
    return m.b(h)


WAYS = [
    *(before_a_break, behind_a_break, on_both_sides, that_notes, between_graphs, on_several, on_a_node),
    *(on_a_parameter_once, behind_the_gradient),
]


@pytest.mark.fast(2)
@pytest.mark.parametrize("forward", WAYS)
def test_each_runs_as_often_as_in_eager(forward: Forward) -> None:
    torch.manual_seed(0)
    model, x = Hooked(forward), torch.randn(16, 64)
    eager = copy.deepcopy(model)
    eager.given = model.given
    graphopt.optimize(model, "1MiB", cost_model="roofline")
    for _ in range(3):
        for each in (model, eager):
            each.zero_grad()
            each(x).backward()
        assert same_gradients(model, eager)
        assert model.seen == eager.seen
