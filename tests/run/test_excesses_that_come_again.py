"""What a loop takes above its plan now and then: all of it is counted, and stays so where it comes again."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.base.errors import BudgetError
from graphopt.device.measure import peak_bytes

X = torch.linspace(-1, 1, 256 * 64).reshape(256, 64)


def two_backwards(model: nn.Module, x: Tensor, keeps: bool) -> None:
    model.zero_grad()
    loss = model(x).square().mean()
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=keeps)


def perceptrons() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(4)),
    )


@pytest.mark.filterwarnings("ignore:graphopt. a training step took")
def test_all_that_a_step_takes_is_counted_at_once() -> None:
    budget, x = 2_650_000, X[:128].clone()
    model = graphopt.optimize(perceptrons(), budget, cost_model="roofline")
    for number in range(6):
        two_backwards(model, x, keeps=number % 2 == 0)
    peaks = [step.measured_bytes for step in model.graphopt.history]
    # the second plan recomputes what the first kept: on some machines that shows a little more, once
    assert peaks[0] > budget and max(peaks[3:]) <= budget and sum(peak > budget for peak in peaks) <= 2
    assert len({step.predicted_bytes for step in list(model.graphopt.history)[3:]}) == 1


@pytest.mark.filterwarnings("ignore:graphopt. a training step took")
def test_what_fits_nowhere_and_comes_every_second_step_is_a_budget_error() -> None:
    budget, x = 2_073_608, X[:128].clone()
    model = graphopt.optimize(perceptrons(), budget, cost_model="roofline")
    taken: list[int] = []
    with pytest.raises(BudgetError) as error:
        for number in range(12):
            two_backwards(model, x, keeps=number % 2 == 0)
            taken.append(model.graphopt.history[-1].measured_bytes)
    assert len(taken) == 5
    assert sum(each > budget for each in taken) == 3
    # with that much it trains, as the last step has shown
    assert error.value.minimum_bytes == taken[-1]


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.fails = perceptrons(), False

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        if self.fails:
            raise ValueError("bad batch")
        return y  # type: ignore[no-any-return]


def retried(model: Fails, x: Tensor, fails: bool, inside: bool) -> None:
    model.zero_grad()
    model.fails = fails
    y = None
    try:
        y = model(x)
    except ValueError:
        model.fails = False
        if inside:
            y = model(x)
    (y if y is not None else model(x)).square().mean().backward()


def test_what_a_traceback_holds_is_told_of_and_counted() -> None:
    model, budget = Fails(), 2_400_000
    graphopt.optimize(model, budget, cost_model="roofline")
    for _ in range(2):
        retried(model, X, fails=False, inside=True)
    with pytest.warns(UserWarning, match="of a forward that raised an error are held by its traceback"):
        seen = peak_bytes(lambda: retried(model, X, fails=True, inside=True), [*model.parameters(), X], "cpu")
    assert seen - 65_536 < model.graphopt.history[-1].measured_bytes <= seen


def test_what_no_traceback_holds_is_not_counted() -> None:
    model = Fails()
    graphopt.optimize(model, 2_400_000, cost_model="roofline")
    retried(model, X, fails=False, inside=False)
    model.zero_grad()
    before = model.graphopt.history[-1].measured_bytes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            retried(model, X, fails=True, inside=False)
            assert model.graphopt.history[-1].measured_bytes <= before


def test_on_excess_raise_heeds_what_a_traceback_holds() -> None:
    model = Fails()
    graphopt.optimize(model, 2_400_000, cost_model="roofline", on_excess="raise")
    retried(model, X, fails=False, inside=True)
    with pytest.raises(BudgetError, match="held by its traceback"):
        retried(model, X, fails=True, inside=True)


def test_a_smaller_batch_in_the_except_block_counts_once() -> None:
    model = Fails()
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    retried(model, X, fails=False, inside=True)
    model.zero_grad()

    def smaller() -> None:
        model.fails = True
        try:
            model(X)
        except ValueError:
            model.fails = False
            model(X[:64].clone()).square().mean().backward()

    smaller()
    model.zero_grad()
    seen = peak_bytes(smaller, [*model.parameters(), X], "cpu")
    # the batch that is no longer called with is not known by name
    assert abs(model.graphopt.history[-1].measured_bytes - seen) <= 2 * 65_536
