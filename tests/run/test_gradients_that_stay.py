"""Gradients that are there when a step begins: counted, added to where they are made, with eager's bits."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import graphopt
from graphopt.device.measure import peak_bytes
from tests.support.residual_blocks import blocks, same_gradients, trained_like_eager


def batch(rows: int = 256) -> torch.Tensor:
    return torch.randn(rows, 64)


def plain(model: nn.Module) -> None:
    model(batch()).square().mean().backward()


def accumulating(model: nn.Module, step: int) -> None:
    if step % 3 == 0:
        model.zero_grad()
    plain(model)


def zeroed(model: nn.Module, _: int) -> None:
    model.zero_grad(set_to_none=False)
    plain(model)


def dropped_between(model: nn.Module, _: int) -> None:
    loss = model(batch()).square().mean()
    model.zero_grad()
    loss.backward()


def regularised(model: nn.Module, _: int) -> None:
    (model(batch()).square().mean() + sum(p.square().sum() for p in model.parameters())).backward()


def asked_for(model: nn.Module, _: int) -> None:
    plain(model)
    found = torch.autograd.grad(model(batch()).mean(), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), found, strict=True):
        parameter.grad.add_(gradient)


def some_inputs(model: nn.Module, step: int) -> None:
    wanted = list(model.parameters())[step % 2 :: 2]
    model(batch()).square().mean().backward(inputs=wanted)


def frozen_for_a_while(model: nn.Module, step: int) -> None:
    model[0].requires_grad_(step % 2 == 0)
    plain(model)


def evaluated_between(model: nn.Module, _: int) -> None:
    plain(model)
    model.eval()
    with torch.no_grad():
        model(batch(512))
    model.train()


def twice_behind_one_forward(model: nn.Module, _: int) -> None:
    loss = model(batch()).square().mean()
    loss.backward(retain_graph=True)
    loss.backward()


def shapes_that_change(model: nn.Module, step: int) -> None:
    model(batch(128 + 128 * (step % 2))).square().mean().backward()


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    "loop",
    [
        accumulating,
        zeroed,
        dropped_between,
        regularised,
        asked_for,
        some_inputs,
        frozen_for_a_while,
        evaluated_between,
        twice_behind_one_forward,
        shapes_that_change,
    ],
)
def test_gradients_are_eagers_whatever_was_there(loop: Callable[[nn.Module, int], None]) -> None:
    trained_like_eager(loop, 6, "16MiB", cost_model="roofline")


class Heads(nn.Module):
    """A layer that both heads use, tied to one of them, and a parameter that is used outside too."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
        self.two.weight = self.body.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.body(x))
        return self.one(h) + self.two(h)


@pytest.mark.fast(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tied_weights_and_every_dtype(dtype: torch.dtype) -> None:
    def loop(model: nn.Module, _: int) -> None:
        (model(torch.randn(32, 64, dtype=dtype)).square().mean() + model.one.weight.sum()).backward()

    torch.manual_seed(0)
    trained_like_eager(loop, 4, "8MiB", Heads().to(dtype), cost_model="roofline")


def hooked(kind: str, seen: list[float]) -> Callable[[nn.Module], object]:
    def note(gradient: torch.Tensor) -> None:
        seen.append(float(gradient.abs().sum()))

    return {
        "tensor": lambda model: model[0][0].weight.register_hook(note),
        "after": lambda model: model[0][0].weight.register_post_accumulate_grad_hook(lambda p: note(p.grad)),
        "node": lambda model: _held(model, note),
    }[kind]


def _held(model: nn.Module, note: Callable[[torch.Tensor], None]) -> None:
    node = torch.autograd.graph.get_gradient_edge(model[0][0].weight).node
    node.register_hook(lambda _, outside: note(outside[0]))
    model.node = node  # who hooks a node keeps it: its hooks go with it


@pytest.mark.fast(2)
@pytest.mark.parametrize("kind", ["tensor", "after", "node"])
def test_a_hook_sees_what_it_sees_in_eager(kind: str) -> None:
    model = blocks(2)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "16MiB", cost_model="roofline")
    seen: dict[nn.Module, list[float]] = {model: [], eager: []}
    for step in range(4):
        for each, notes in seen.items():
            if step == 2:
                hooked(kind, notes)(each)
            torch.manual_seed(step)
            plain(each)
        assert same_gradients(model, eager)
    assert seen[model] == seen[eager] and len(seen[model]) == 2


def test_accumulation_stays_inside_the_budget_and_takes_less_than_eager() -> None:
    """6 x (256 -> 1024 -> 256), batch 256, 32 MiB: planned were 29.7 MB, and every further micro-batch took 42.3."""
    model, x = blocks(6, 256), torch.randn(256, 256)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "32MiB", cost_model="roofline")

    def step(each: nn.Module) -> None:
        (each(x).square().mean() / 3).backward()

    found = {}
    for each in (model, eager):
        step(each)
        step(each)
        gradients = [parameter.grad for parameter in each.parameters()]
        found[each] = peak_bytes(lambda each=each: step(each), [*each.parameters(), *gradients, x], "cpu")
    assert same_gradients(model, eager)
    assert model.graphopt.in_force.key.adds, model.graphopt.session.graphs[0].sums
    assert found[model] <= model.graphopt.plan.peak_bytes <= 32 * 2**20 < found[eager]
    assert model.graphopt.plan.resident_bytes["gradients"] == sum(p.nbytes for p in model.parameters())
    assert [each.measured_bytes <= 32 * 2**20 for each in model.graphopt.history] == [True] * 3


def test_gradients_that_are_kept_beside_new_ones_are_counted() -> None:
    """With a hook on a parameter nothing is added in place: a second set of gradients lives, and is in the plan."""
    model = blocks()
    graphopt.optimize(model, "4MiB", cost_model="roofline")
    model[0][0].weight.register_hook(lambda _: None)
    for _ in range(4):
        plain(model)
    assert model.graphopt.in_force.key.keeps
    assert model.graphopt.plan.resident_bytes["gradients"] == sum(p.nbytes for p in model.parameters())
    assert all(step.measured_bytes <= step.predicted_bytes <= 4 * 2**20 for step in model.graphopt.history)


def test_a_budget_that_leaves_no_room_for_gradients_that_stay_says_so() -> None:
    model = blocks()
    graphopt.optimize(model, "1MiB", cost_model="roofline")
    with pytest.raises(graphopt.BudgetError):
        plain(model)
    model = blocks()
    graphopt.optimize(model, "1200KB", cost_model="roofline")
    model(batch(32)).square().mean().backward()
    with pytest.raises(graphopt.BudgetError, match=r"gradients 517\.0 KiB"):
        model(batch(64)).square().mean().backward()


def with_more_from_step_four_on(model: nn.Module, step: int) -> None:
    loss = model(batch(128 + 32 * step)).square().mean()
    (loss + model[0][0].weight.square().sum() * 0.1 if step >= 4 else loss).backward()


@pytest.mark.parametrize("dynamic", [None, False])
def test_a_shape_that_is_new_while_gradients_are_held_makes_no_second_set(dynamic: bool | None) -> None:
    model, spare_bytes = blocks(4), 300_000
    eager = copy.deepcopy(model)
    known = graphopt.optimize(copy.deepcopy(model), "64MiB", example_inputs=batch(256), cost_model="roofline")
    # there is room for what the forward keeps, and for no second set of gradients
    budget = known.graphopt.plan.minimum_bytes + spare_bytes
    assert spare_bytes < sum(p.nbytes for p in model.parameters())
    graphopt.optimize(model, budget, dynamic=dynamic, cost_model="roofline")
    for rows in (256, 192, 256, 160, 224, 128):
        torch.manual_seed(rows)
        x = batch(rows)
        for each in (model, eager):
            each(x).square().mean().backward()
        assert same_gradients(model, eager)
    assert all(step.measured_bytes <= step.predicted_bytes <= budget for step in model.graphopt.history)
    assert all(graph.sums.may_add for graph in model.graphopt.session.graphs)


def test_a_gradient_from_outside_that_only_a_new_shape_has_is_told_of() -> None:
    model = blocks(2)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "16MiB", dynamic=False, cost_model="roofline")
    told = []
    for step in range(6):
        for each in (model, eager):
            torch.manual_seed(step)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                with_more_from_step_four_on(each, step)
            told += [step for each in caught if "up both first" in str(each.message)]
        pairs = [(a.grad, b.grad) for a, b in zip(model.parameters(), eager.parameters(), strict=True)]
        assert all(torch.equal(a, b) for a, b in pairs[1:]) and (step > 3 or torch.equal(*pairs[0]))
        torch.testing.assert_close(*pairs[0], rtol=1e-6, atol=1e-7)
    assert told == [4]


@pytest.mark.parametrize("every", [2, 3, 4])
def test_a_gradient_from_outside_that_comes_now_and_then_is_told_of_once(every: int) -> None:
    """A penalty in the last micro-batch of each window only: eager adds it to the model's own gradient first."""
    model = blocks(2)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "16MiB", cost_model="roofline")
    told, apart = [], []
    for step in range(12):
        for each in (model, eager):
            torch.manual_seed(step)
            loss = each(batch(64)).square().mean()
            if step % every == every - 1:
                loss = loss + 0.1 * sum(p.square().sum() for p in each.parameters())
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                loss.backward()
            told += [step for each in caught if "up both first" in str(each.message)]
        apart += [] if same_gradients(model, eager) else [step]
        if step % every == every - 1:
            model.zero_grad()
            eager.zero_grad()
    assert told == [every - 1] and set(apart) <= {every - 1}
