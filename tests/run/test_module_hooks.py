"""Hooks on modules that come or go after a plan was made count as in eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

import graphopt
from graphopt.base.errors import CaptureError

X = torch.linspace(-1, 1, 32).reshape(4, 8)
ADDED: dict[str, Callable[[nn.Module], RemovableHandle]] = {
    "forward": lambda m: m.register_forward_hook(lambda _m, _i, out: out * 2),
    "forward with keywords": lambda m: m.register_forward_hook(lambda _m, _i, _k, out: out * 2, with_kwargs=True),
    "pre": lambda m: m.register_forward_pre_hook(lambda _m, given: (given[0] * 3,)),
    "pre with keywords": lambda m: m.register_forward_pre_hook(lambda _m, a, k: ((a[0] * 3,), k), with_kwargs=True),
    "backward": lambda m: m.register_full_backward_hook(
        lambda _m, i, _o: tuple(g * 5 if g is not None else g for g in i)
    ),
    "backward pre": lambda m: m.register_full_backward_pre_hook(lambda _m, given: (given[0] * 5,)),
}
REMOVED = [name for name in ADDED if not name.startswith("backward")]


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))


def step(model: nn.Module) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model(X).square().sum()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def same(model: nn.Module, eager: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(step(model), step(eager), strict=True))


def place(model: nn.Module, where: str) -> nn.Module:
    return model if where == "model" else model[0]  # type: ignore[index,no-any-return]


@pytest.mark.parametrize("where", ["model", "child"])
@pytest.mark.parametrize("kind", ADDED)
def test_a_hook_that_comes_after_planning_is_heeded(kind: str, where: str) -> None:
    model, eager = graphopt.optimize(build(), "1GiB", cost_model="roofline"), build()
    assert same(model, eager)
    ADDED[kind](place(model, where))
    ADDED[kind](place(eager, where))
    assert same(model, eager)


@pytest.mark.parametrize("where", ["model", "child"])
@pytest.mark.parametrize("kind", REMOVED)
def test_a_hook_that_goes_after_planning_is_gone(kind: str, where: str) -> None:
    model, eager = build(), build()
    handle = ADDED[kind](place(model, where))
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    assert not same(model, eager)
    handle.remove()
    assert same(model, eager)


@pytest.mark.parametrize("kind", ["forward", "pre with keywords"])
def test_a_training_step_heeds_hooks_that_come_and_go(kind: str) -> None:
    def losses(step_of: Callable[[nn.Module], Callable[[], Any]]) -> list[float]:
        model = build()
        run = step_of(model)
        found = [float(run())]
        handle = ADDED[kind](model[0])
        found.append(float(run()))
        handle.remove()
        return [*found, float(run())]

    def planned(model: nn.Module) -> Callable[[], Any]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train = graphopt.train_step(model, nn.functional.mse_loss, optimizer, cost_model="roofline")
        return lambda: train(X, X).loss

    def eager(model: nn.Module) -> Callable[[], Any]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def run() -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(X), X)
            loss.backward()
            optimizer.step()
            return loss

        return run

    with graphopt.kernels.use("stock"):
        assert losses(planned) == losses(eager)


class Layered(nn.Module):
    """The same layers, which are not called in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = build()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[-1](torch.tanh(self.layers[0](x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["backward", "backward pre"])
def test_a_backward_hook_from_the_start_is_refused_by_name_or_cuts_the_graph(kind: str) -> None:
    def hooked(model: nn.Module) -> nn.Module:
        ADDED[kind](list(model.modules())[-1])
        return model

    with pytest.raises(CaptureError, match=r"'2' has a backward hook.*output.register_hook"):
        graphopt.optimize(hooked(build()), "1GiB", example_inputs=X, cost_model="roofline")
    model, eager = hooked(Layered()), hooked(Layered())
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    assert same(model, eager) and same(model, eager)
    (broken,) = model.graphopt.session.breaks  # type: ignore[union-attr]
    assert "full backward hook" in broken.reason and broken.source.startswith(__file__)
    model = hooked(Layered())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(CaptureError, match=rf"{__file__}:\d+ in forward: a module with a full backward hook"):
        graphopt.train_step(model, nn.functional.mse_loss, optimizer, cost_model="roofline")(X, X)


def test_a_hook_on_a_tensor_in_a_forward_hook_is_captured() -> None:
    def hooked(model: nn.Module) -> nn.Module:
        model[0].register_forward_hook(  # type: ignore[index]
            lambda _module, _inputs, output: output.register_hook(lambda gradient: 2 * gradient) and None
        )
        return model

    model, eager = hooked(build()), hooked(build())
    graphopt.optimize(model, "1GiB", example_inputs=X, cost_model="roofline")
    assert same(model, eager)
    assert not model.graphopt.session.breaks  # type: ignore[union-attr]
    assert not same(model, build())
