"""Blocks of two layers, and the loops in which people train them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

import graphopt

Loop = Callable[[nn.Module, int], object]


def blocks(count: int = 4, width: int = 64) -> nn.Sequential:
    """`count` times width -> 4 width -> width."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(count))
    )


def same_gradients(one: nn.Module, other: nn.Module) -> bool:
    """Whether the gradients of both have the same bits, and are missing for the same parameters."""
    pairs = [(a.grad, b.grad) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    return all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def trained_like_eager(
    loop: Loop, steps: int, budget: object, model: nn.Module | None = None, **options: object
) -> nn.Module:
    """An optimized model after some steps of a loop, each with eager's bits."""
    model = blocks() if model is None else model
    eager = copy.deepcopy(model)
    graphopt.optimize(model, budget, **options)  # type: ignore[arg-type]
    for step in range(steps):
        for each in (eager, model):
            torch.manual_seed(step)
            loop(each, step)
        assert same_gradients(model, eager), step
        assert all(map(torch.equal, model.parameters(), eager.parameters())), step
    return model
