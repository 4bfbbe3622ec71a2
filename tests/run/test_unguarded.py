"""What Dynamo does not guard, and what is heeded nevertheless: hooks of all modules, and methods of classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.modules.module as of_all
from torch import nn
from torch.utils.hooks import RemovableHandle

import graphopt
from graphopt.base.errors import CaptureError
from graphopt.capture.unguarded import Unguarded

X = torch.linspace(-1, 1, 32).reshape(4, 8)
HOOKS: dict[str, Callable[[], RemovableHandle]] = {
    "forward": lambda: of_all.register_module_forward_hook(lambda m, _, out: out * 2 if is_linear(m) else None),
    "pre": lambda: of_all.register_module_forward_pre_hook(lambda m, a: (a[0] * 3,) if is_linear(m) else None),
    "backward": lambda: of_all.register_module_full_backward_hook(
        lambda m, gradients, _: tuple(g * 5 for g in gradients) if isinstance(m, nn.Tanh) else None
    ),
    "backward pre": lambda: of_all.register_module_full_backward_pre_hook(
        lambda m, gradients: (gradients[0] * 5,) if is_linear(m) else None
    ),
}
FORWARD = ["forward", "pre"]


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


@pytest.fixture(autouse=True)
def _hooks_go() -> Iterator[None]:
    yield
    for hooks in (
        *(of_all._global_forward_hooks, of_all._global_forward_pre_hooks),
        *(of_all._global_backward_hooks, of_all._global_backward_pre_hooks),
    ):
        hooks.clear()


class Helper:
    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Base(nn.Module):
    def shifted(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin()


class Block(Base):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.helper = nn.Linear(8, 8), Helper()

    @classmethod
    def halved(cls, x: torch.Tensor) -> torch.Tensor:
        return x / 2

    @staticmethod
    def squared(x: torch.Tensor) -> torch.Tensor:
        return x * x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(self.squared(self.halved(self.layer(x))))
        return self.helper.scaled(self.shifted(x))


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), nn.Tanh(), nn.Linear(8, 8))


class InPieces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = Block(), Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)  # type: ignore[no-any-return]


def step(model: nn.Module) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model(X).square().sum()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def same(model: nn.Module, eager: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(step(model), step(eager), strict=True))


@pytest.mark.fast(2)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_for_all_modules_is_heeded_when_it_comes_and_when_it_goes(kind: str) -> None:
    model, eager = graphopt.optimize(build(), "1GiB", cost_model="roofline"), build()
    assert same(model, eager)
    planned = step(model)
    handle = HOOKS[kind]()
    assert same(model, eager)
    assert not all(torch.equal(a, b) for a, b in zip(step(model), planned, strict=True))
    handle.remove()
    assert same(model, eager)
    assert all(torch.equal(a, b) for a, b in zip(step(model), planned, strict=True))


@pytest.mark.parametrize("kind", FORWARD)
def test_another_hook_for_all_modules_in_the_place_of_one_is_heeded(kind: str) -> None:
    handle = HOOKS[kind]()
    model, eager = graphopt.optimize(build(), "1GiB", cost_model="roofline"), build()
    assert same(model, eager)
    handle.remove()
    of_all.register_module_forward_pre_hook(lambda _, given: (given[0] - 1,))
    assert same(model, eager)


@pytest.mark.fast(1)
@pytest.mark.parametrize("kind", FORWARD)
def test_a_hook_for_all_modules_is_heeded_in_a_model_that_breaks(kind: str) -> None:
    model, eager = graphopt.optimize(InPieces(), "1GiB", cost_model="roofline"), InPieces()
    assert same(model, eager)
    HOOKS[kind]()
    assert same(model, eager)


@pytest.mark.fast(1)
@pytest.mark.parametrize("kind", HOOKS)
def test_a_training_step_heeds_hooks_for_all_modules(kind: str) -> None:
    model, eager = build(), build()
    optimizer, twin = (torch.optim.SGD(m.parameters(), 0.1, foreach=False) for m in (model, eager))
    train = graphopt.train_step(model, nn.functional.mse_loss, optimizer, cost_model="roofline")

    def by_hand() -> torch.Tensor:
        twin.zero_grad()
        loss = nn.functional.mse_loss(eager(X), X)
        loss.backward()
        twin.step()
        return loss.detach()

    with graphopt.kernels.use("stock"):
        assert float(train(X, X).loss) == float(by_hand())
        handle = HOOKS[kind]()
        if kind in FORWARD:
            assert [float(train(X, X).loss) for _ in range(2)] == [float(by_hand()) for _ in range(2)]
        else:
            with pytest.raises(CaptureError, match="full backward hook"):
                train(X, X)
        handle.remove()
        assert float(train(X, X).loss) == float(by_hand())


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_a_backward_hook_for_all_modules_is_named_where_nothing_can_be_captured() -> None:
    model = graphopt.optimize(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), "1GiB", cost_model="roofline")
    handle = HOOKS["backward"]()
    with pytest.raises(CaptureError, match="there is a backward hook for all modules"):
        step(model)
    handle.remove()
    step(model)
    assert model.graphopt.plan.peak_bytes


REPLACED: dict[str, tuple[type, str, Any]] = {
    "forward": (Block, "forward", lambda self, x: self.layer(x) * 3),
    "a method": (Base, "shifted", lambda _, x: x + 5),
    "one that a subclass then has": (Block, "shifted", lambda _, x: x + 6),
    "one behind super": (Base, "forward", lambda _, x: x.cos()),
    "a classmethod": (Block, "halved", classmethod(lambda _, x: x / 3)),
    "a staticmethod": (Block, "squared", staticmethod(lambda x: x * x * x)),
    "of what is no module": (Helper, "scaled", lambda _, x: x * 7),
    "of torch's": (nn.Linear, "forward", lambda self, x: nn.functional.linear(x, self.weight * 2)),
}


@pytest.mark.fast(2)
@pytest.mark.parametrize("make", [build, Block, InPieces])
@pytest.mark.parametrize("what", REPLACED)
def test_a_method_that_is_replaced_after_planning_is_heeded(
    what: str, make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = graphopt.optimize(make(), "1GiB", cost_model="roofline")
    torch.manual_seed(0)
    eager = make()
    assert same(model, eager)
    planned = step(model)[0]
    owner, name, method = REPLACED[what]
    monkeypatch.setattr(owner, name, method, raising=False)
    assert same(model, eager)
    assert not torch.equal(step(model)[0], planned)
    monkeypatch.undo()
    assert same(model, eager)
    assert torch.equal(step(model)[0], planned)


def test_code_that_is_loaded_again_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As IPython's autoreload does it."""
    model, eager = graphopt.optimize(build(), "1GiB", cost_model="roofline"), build()
    assert same(model, eager)
    planned = step(model)[0]

    def shifted(_: Base, x: torch.Tensor) -> torch.Tensor:
        return x + 9

    monkeypatch.setattr(Base.shifted, "__code__", shifted.__code__)
    assert same(model, eager)
    assert not torch.equal(step(model)[0], planned)


def test_a_training_step_heeds_a_method_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model, eager = build(), build()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    train = graphopt.train_step(model, nn.functional.mse_loss, optimizer, cost_model="roofline")
    assert float(train(X, X).loss) == float(nn.functional.mse_loss(eager(X), X).detach())
    monkeypatch.setattr(Base, "shifted", lambda _, x: x + 5)
    assert float(train(X, X).loss) == float(nn.functional.mse_loss(eager(X), X).detach())


def test_the_look_at_them_is_cheap() -> None:
    model = graphopt.optimize(nn.Sequential(*[Block() for _ in range(24)]), "1GiB", cost_model="roofline")
    step(model)
    found: list[Unguarded] = [cell.cell_contents for cell in model.graphopt.session._compiled.__closure__]
    unguarded = next(each for each in found if isinstance(each, Unguarded))
    times = []
    for _ in range(200):
        began = time.perf_counter()
        unguarded.forget_if_changed()
        times.append(time.perf_counter() - began)
    assert min(times) < 100e-6
