"""Optimizers' state is counted from the moment when it is there as a step begins, whoever made it and when."""

from __future__ import annotations

import copy
import gc
import logging
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import graphopt
from graphopt.run.watch import known_memory
from tests.support.residual_blocks import blocks, trained_like_eager

BUDGET = 3_200_000
Optimizers = list[torch.optim.Optimizer]


def state_of(parameters: list[nn.Parameter]) -> int:
    """Two moments and a count for each."""
    return sum(2 * 4 * parameter.numel() + 4 for parameter in parameters)


def in_micro_batches(model: nn.Module, step: int) -> None:
    """Three of several shapes for each update."""
    if not step:
        model.optimizer = [torch.optim.AdamW(model.parameters(), lr=1e-3)]
    model(torch.randn((256, 192, 128)[step * 2 % 3], 64)).square().mean().backward()
    if step % 3 == 2:
        model.optimizer[0].step()
        model.optimizer[0].zero_grad()


def each_step(model: nn.Module, step: int) -> None:
    if not step:
        model.optimizer = [torch.optim.AdamW(model.parameters(), lr=1e-3)]
    model.zero_grad()
    model(torch.randn(256, 64)).square().mean().backward()
    model.optimizer[0].step()


@pytest.mark.parametrize("loop", [each_step, in_micro_batches])
def test_it_is_counted_before_it_is_too_much(loop: Callable[[nn.Module, int], None]) -> None:
    """Steps at the same budget took more than that before the state counted, and were told of only then."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "graphopt")
        model = trained_like_eager(loop, 10, BUDGET, cost_model="roofline")
    history, state_bytes = model.graphopt.history, state_of(list(model.parameters()))
    assert max(step.measured_bytes for step in history) <= BUDGET
    assert max(step.measured_bytes for step in history if not step.state_bytes) > BUDGET - state_bytes
    assert history[-1].state_bytes == state_bytes
    assert all(step.measured_bytes <= step.predicted_bytes for step in history)


def test_that_it_counts_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="graphopt")
    trained_like_eager(each_step, 5, BUDGET, cost_model="roofline")
    assert sum("the optimizer's state takes 1.0 MiB, which plans count" in text for text in caplog.messages) == 1


def test_state_that_is_there_before_the_first_call_is_in_its_plan() -> None:
    """A training that goes on has the optimizer's state from the start; an update comes after three micro-batches."""
    model, x = blocks(), torch.randn(256, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(x).square().mean().backward()
    optimizer.step()
    model.zero_grad()
    state_bytes = state_of(list(model.parameters()))
    known = graphopt.optimize(model, "64MiB", example_inputs=x, cost_model="roofline")
    minimum = known.graphopt.plan.minimum_bytes + state_bytes
    graphopt.optimize(model.graphopt.restore(), minimum - state_bytes // 2, cost_model="roofline")
    with pytest.raises(graphopt.BudgetError) as caught:
        model(x)
    assert caught.value.minimum_bytes == minimum and "optimizer state 1.0 MiB" in str(caught.value)
    graphopt.optimize(model.graphopt.restore(), minimum, cost_model="roofline")
    model(x).square().mean().backward()
    (step,) = model.graphopt.history
    assert step.state_bytes == state_bytes and step.measured_bytes <= minimum


@pytest.mark.parametrize("has_example", [False, True])
def test_gradients_and_state_are_in_the_plan_of_the_first_call(has_example: bool) -> None:
    """Behind a plan for examples the first call was planned as if nothing but the model were there."""
    model, x = blocks(), torch.randn(64, 64)
    model(x).square().mean().backward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer.step()
    graphopt.optimize(model, "64MiB", example_inputs=x if has_example else None, cost_model="roofline")
    for _ in range(2):
        model(x).square().mean().backward()
    assert len({(step.predicted_bytes, step.measured_bytes) for step in model.graphopt.history}) == 1
    assert model.graphopt.history[0].measured_bytes <= model.graphopt.history[0].predicted_bytes


def loads(model: nn.Module, optimizers: Optimizers, saved: dict[str, object]) -> None:
    optimizers.append(torch.optim.AdamW(model.parameters(), lr=1e-3))
    optimizers[0].load_state_dict(copy.deepcopy(saved))


def replaces(model: nn.Module, optimizers: Optimizers, saved: dict[str, object]) -> None:
    loads(model, optimizers, saved)
    del optimizers[0]
    gc.collect()
    loads(model, optimizers, saved)


def loads_later(_: nn.Module, optimizers: Optimizers, saved: dict[str, object]) -> None:
    optimizers[0].load_state_dict(copy.deepcopy(saved))


def of_a_part(model: nn.Module, optimizers: Optimizers, _: dict[str, object]) -> None:
    part = model[1]
    optimizers.append(torch.optim.SGD(part.parameters(), lr=1e-3, momentum=0.9))
    for parameter in part.parameters():
        optimizers[0].state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


@pytest.mark.parametrize("way", [loads, replaces, loads_later, of_a_part])
@pytest.mark.parametrize("shapes", [(256, 128, 192), (256,)], ids=["ragged", "steady"])
def test_what_is_loaded_while_training_counts_from_the_next_call_on(
    way: Callable[[nn.Module, Optimizers, dict[str, object]], None], shapes: tuple[int, ...]
) -> None:
    """It was seen only when its optimizer stepped first, micro-batches later."""
    torch.manual_seed(0)
    other = blocks()
    saved = torch.optim.AdamW(other.parameters(), lr=1e-3)
    other(torch.randn(8, 64)).mean().backward()
    saved.step()
    model, optimizers = graphopt.optimize(blocks(), "64MiB", cost_model="roofline"), []
    for step in range(16):
        if way is loads_later and step == 2:
            optimizers.append(torch.optim.AdamW(model.parameters(), lr=1e-3))
        if step == 12:
            way(model, optimizers, saved.state_dict())
        model.zero_grad()
        model(torch.randn(shapes[step % len(shapes)], 64)).square().mean().backward()
    part = sum(4 * parameter.numel() for parameter in model[1].parameters())
    expected = part if way is of_a_part else state_of(list(model.parameters()))
    assert [step.state_bytes for step in model.graphopt.history] == [0] * 12 + [expected] * 4


def test_a_loop_that_holds_parameters_is_not_searched_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    model, searches = graphopt.optimize(blocks(), "64MiB", cost_model="roofline"), []
    x = torch.randn(64, 64)
    model(x).mean().backward()
    known = model.graphopt.session.loop.watch._known
    monkeypatch.setattr(known, "looks_for_optimizers", lambda: searches.append(1))
    held = []
    for step in range(3 * known_memory._MOST_IN_VAIN):
        held.append(list(model.parameters()))
        model.zero_grad()
        model(x[: 8 + step]).mean().backward()
    assert len(searches) == known_memory._MOST_IN_VAIN
