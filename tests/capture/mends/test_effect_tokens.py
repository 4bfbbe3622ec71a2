"""Ops with effects, to which AOTAutograd gives tokens: linear algebra that checks, prints, and custom ops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._library.effects import EffectType

import graphopt
from tests.support.residual_blocks import same_gradients

Forward = Callable[["Model", Tensor], Tensor]
linalg = torch.linalg
EYE = torch.eye(8)
ran: list[str] = []


class Model(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.b, self.given = nn.Linear(8, 8), nn.Linear(8, 8), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.given(self, x).abs().square().sum()


def eig(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    return linalg.eig(h @ h.T)[0]


def eigvals(m: Model, x: Tensor) -> Tensor:
    return linalg.eigvals(m.a(x))


def solve(m: Model, x: Tensor) -> Tensor:
    return linalg.solve(m.a(x) + 3 * EYE, m.b(x))


def complex_solve(m: Model, x: Tensor) -> Tensor:
    return linalg.solve(m.a(x).to(torch.complex64) + 3j * EYE, m.b(x).to(torch.complex64))


def complex_inverse(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    return linalg.inv(torch.complex(h, h.T) + 3 * EYE)


def determinant(m: Model, x: Tensor) -> Tensor:
    return linalg.slogdet(m.a(x) + 3 * EYE)[1]


def cholesky(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    return linalg.cholesky(h @ h.T + EYE)


def in_both_halves(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    return linalg.eig(h @ h.T)[0].abs().sum() + linalg.solve(h + 3 * EYE, m.b(x)).square().sum()


@torch.compiler.nested_compile_region
def sine(h: Tensor) -> Tensor:
    return torch.sin(h)


def region(m: Model, x: Tensor) -> Tensor:
    return sine(m.b(sine(m.a(x))))


def condition(m: Model, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda h: h.sin(), lambda h: h.cos(), (m.a(x),))


def assertion(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    torch._assert_async((h < 100).all())
    return m.b(h)


WAYS = [
    *(eig, eigvals, solve, complex_solve, complex_inverse, determinant, cholesky, in_both_halves),
    *(region, condition, assertion),
]


@pytest.mark.fast(5)
@pytest.mark.parametrize("forward", WAYS)
def test_gradients_have_eagers_bits_also_where_they_are_added(forward: Forward) -> None:
    torch.manual_seed(0)
    model, x = Model(forward), torch.randn(8, 8)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1MiB", cost_model="roofline")
    for _ in range(3):
        assert torch.equal(model(x), eager(x))
        for each in (model, eager):
            each(x).backward()
        assert same_gradients(model, eager)
    assert len(model.graphopt.session.graphs) == 1


@pytest.mark.parametrize("forward", WAYS)
def test_a_training_step_has_them(forward: Forward) -> None:
    torch.manual_seed(0)
    model, x = Model(forward), torch.randn(8, 8)
    eager = copy.deepcopy(model)
    ours, theirs = (torch.optim.SGD(each.parameters(), lr=0.01) for each in (model, eager))
    step = graphopt.train_step(model, None, ours, cost_model="roofline")
    for _ in range(2):
        step(x)
        theirs.zero_grad()
        eager(x).backward()
        theirs.step()
        assert all(map(torch.equal, model.parameters(), eager.parameters()))


def test_a_singular_matrix_is_eagers_error() -> None:
    model = graphopt.optimize(Model(lambda m, x: linalg.inv(m.a(x) * 0)), "1MiB", cost_model="roofline")
    with pytest.raises(RuntimeError, match="singular"):
        model(torch.ones(8, 8))


@pytest.fixture
def noted() -> Iterator[Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """A custom op of two results that notes that it ran, in both directions."""
    library = torch.library.Library("graphopt_tests", "FRAGMENT")
    library.define("noted(Tensor x) -> (Tensor, Tensor)")

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        ran.append("op")
        return x * 2, x + 1

    library.impl("noted", run, "CPU")
    torch.library.register_fake(
        "graphopt_tests::noted", lambda x: (torch.empty_like(x), torch.empty_like(x)), lib=library
    )
    torch.library.register_autograd(
        "graphopt_tests::noted",
        lambda _ctx, one, other: torch.ops.graphopt_tests.noted(one)[0] + other,
        lib=library,
    )
    torch.library._register_effectful_op("graphopt_tests::noted", EffectType.ORDERED, lib=library)
    yield torch.ops.graphopt_tests.noted.default
    library._destroy()


@pytest.mark.parametrize("cost_model", ["roofline", "auto"])
@pytest.mark.filterwarnings("ignore:graphopt. .* ops could not be measured")
def test_custom_ops_with_effects_run_once(noted: Callable[[Tensor], tuple[Tensor, Tensor]], cost_model: str) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        one, other = noted(m.a(x))
        return m.b(one) + other

    torch.manual_seed(0)
    model, x = Model(forward), torch.randn(8, 8)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1MiB", cost_model=cost_model, example_inputs=x)
    for each in (model, eager):
        ran.clear()
        each(x).backward()
        assert ran == ["op", "op"]
    assert same_gradients(model, eager)


def test_a_print_comes_once_a_step(capfd: pytest.CaptureFixture[str]) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        torch.ops.aten._print("hello")
        return m.a(x)

    model, x = Model(forward), torch.randn(8, 8)
    graphopt.optimize(model, "1MiB", example_inputs=x)
    assert capfd.readouterr().out.count("hello") == 0
    for _ in range(2):
        model(x).backward()
    assert capfd.readouterr().out.count("hello") == 2
