"""Autocast around a model, inside of it and around its backward: eager's gradients, or the difference is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn

import graphopt


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x))).float().square().mean()


class Island(nn.Module):
    """A product in float32 inside of autocast, as attention scores often are."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.w = nn.Parameter(torch.randn(8, 8) / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        with torch.autocast("cpu", enabled=False):
            return (x.float() @ self.w).square().mean()


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.b(torch.tanh(self.a(x)))
        torch._dynamo.graph_break()
        return self.c(h).float().square().mean()


class PartlyFrozen(Broken):
    """A piece that needs no gradient between two that do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        with torch.no_grad():
            g = self.b(x)
            torch._dynamo.graph_break()
            g = g.tanh()
        return self.c(h * g).float().square().mean()


MODELS: dict[str, Callable[[], nn.Module]] = {m.__name__: m for m in (Whole, Island, Broken, PartlyFrozen)}


def wrapped(model: nn.Module) -> None:
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)  # type: ignore[method-assign]


@contextmanager
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


def gradients(model: nn.Module, around: str) -> list[torch.Tensor | None]:
    """Of the third of three steps, so that what was planned in the first is what runs."""
    for _ in range(3):
        model.zero_grad()
        with autocast() if around == "call" else nullcontext():
            loss = model(torch.linspace(-1, 1, 32).reshape(4, 8))
        loss.backward()
    return [parameter.grad for parameter in model.parameters()]


def same(one: list[torch.Tensor | None], other: list[torch.Tensor | None]) -> bool:
    return all(
        a is b is None or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.fast(5)
@pytest.mark.parametrize("planned", ["before", "in the loop"])
@pytest.mark.parametrize("around", ["call", "forward"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_eagers(name: str, around: str, planned: str) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return MODELS[name]()

    model, eager = made(), made()
    example = torch.zeros(4, 8) if planned == "before" else None
    graphopt.optimize(model, "1GiB", cost_model="roofline", example_inputs=example)
    if around == "forward":
        wrapped(model)
        wrapped(eager)
    assert same(gradients(model, around), gradients(eager, around))


@pytest.mark.parametrize(("name", "said"), [("Whole", 0), ("Island", 1)])
def test_a_backward_inside_of_autocast_is_told_of_where_it_matters(name: str, said: int) -> None:
    model = graphopt.optimize(MODELS[name](), "1GiB", cost_model="roofline")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with autocast():
                model(torch.randn(4, 8)).backward()
    assert sum("inside of autocast" in str(warning.message) for warning in caught) == said
