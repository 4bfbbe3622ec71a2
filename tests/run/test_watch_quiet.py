"""Where nothing is counted behind a backward, nobody is told of its end; what is counted there later is not missed."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import graphopt
from graphopt.base.errors import BudgetError
from graphopt.device.measure import peak_bytes
from graphopt.run.watch import steady, watch
from graphopt.run.watch.measured_step import MeasuredStep, Place
from tests.support.residual_blocks import blocks

ROWS, WIDTH, STEPS, EVENT = 64, 64, 24, 16
LARGE = 1_000_000
BUDGET = 3_000_000


class Front(torch.autograd.Function):
    """What stands in front of the model: its backward runs behind the model's, and allocates `size` numbers."""

    size = 1

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        torch.ones(Front.size)
        return gradient


class Loop:
    """A training loop: from step EVENT on, for so many steps, `place` allocates LARGE numbers."""

    def __init__(self, place: str = "", times: int = STEPS, budget: int = BUDGET, on_excess: Any = "correct") -> None:
        torch.manual_seed(0)
        self.place, self.times, self.number = place, times, 0
        self.model = graphopt.optimize(blocks(), budget, cost_model="roofline", on_excess=on_excess)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.x = torch.randn(ROWS, WIDTH, requires_grad=True)

    def size(self, place: str) -> int:
        return LARGE if place == self.place and EVENT <= self.number < EVENT + self.times else 1

    def step(self) -> None:
        self.model.zero_grad()
        self.x.grad = None
        Front.size = self.size("backward")
        self.model(Front.apply(self.x)).square().mean().backward()
        torch.ones(self.size("between"))
        self.optimizer.step()
        torch.ones(self.size("behind"))
        self.number += 1

    def run(self, steps: int = STEPS) -> tuple[MeasuredStep, ...]:
        for _ in range(steps):
            if self.number == 3:
                gc.collect()
            self.step()
        return self.model.graphopt.history  # type: ignore[no-any-return, union-attr]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each backward whose end autograd is asked to tell."""
    queue, seen = watch._queue_callback, []

    def asks(callback: Any) -> None:
        seen.append(1)
        queue(callback)

    monkeypatch.setattr(watch, "_queue_callback", asks)
    return seen


@pytest.fixture(autouse=True)
def _small_again() -> Iterator[None]:
    yield
    Front.size = 1


def by_place(monkeypatch: pytest.MonkeyPatch, place: str, times: int = STEPS) -> tuple[MeasuredStep, ...]:
    monkeypatch.setattr(steady.Steady, "begins", lambda *_: None)
    return Loop(place, times, budget=2**26).run()


def sizes(history: tuple[MeasuredStep, ...]) -> list[int]:
    return [step.measured_bytes for step in history]


def test_in_a_quiet_loop_nobody_is_told_of_the_end_of_a_backward(asked: list[int]) -> None:
    loop = Loop()
    history = loop.run()
    assert len(asked) <= 6 and len(history) == STEPS
    assert len(set(sizes(history)[2:])) == 1
    loop.model.zero_grad()
    loop.x.grad = None

    def forward_and_backward() -> None:
        loop.model(Front.apply(loop.x)).square().mean().backward()

    # what stands in front of the model is not the model's, but what it gives
    measured = peak_bytes(forward_and_backward, loop.model.parameters(), "cpu")
    assert loop.model.graphopt.history[-1].measured_bytes == measured  # type: ignore[union-attr]


def test_an_excess_behind_the_planned_backward_is_said_at_once_and_measured_from_the_next_step_on(
    asked: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop("backward")
    loop.run(EVENT)
    asked.clear()
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "graphopt"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.run(1)
        assert not asked and "It is not known if that was in the backward" in caplog.messages[-1] and not caught
        loop.run(1)
        assert len(asked) == 1 and "a training step took" in str(caught[-1].message)
        history = loop.run(2)
    excess = history[EVENT + 1].measured_bytes - BUDGET
    assert f"{excess:,} bytes more than the budget" in caplog.messages[0]
    assert f"{excess:,} bytes more than the budget" in str(caught[0].message)
    assert history[EVENT + 2].place is Place.BACKWARD
    every = by_place(monkeypatch, "backward")
    assert sizes(history)[EVENT + 1] == sizes(every)[EVENT + 1] > BUDGET


def test_one_excess_alone_behind_the_planned_backward_is_said(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop("backward", times=1)
    with caplog.at_level(logging.WARNING, "graphopt"):
        history = loop.run()
    assert len(caplog.messages) == 1 and "It is not known if that was in the backward" in caplog.messages[0]
    assert len(set(sizes(history)[2:])) == 1


@pytest.mark.parametrize("place", ["between", "behind"])
def test_what_comes_beside_the_step_is_in_none(
    place: str, asked: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(place)
    with caplog.at_level(logging.WARNING, "graphopt"):
        loop.run(EVENT + 1)
        asked.clear()
        history = loop.run(STEPS - EVENT - 1)
    # between backward and update it cannot be told from what autograd still does, until it is asked when that ends
    is_told = place == "between"
    assert len(caplog.messages) == is_told and len(asked) == is_told * (STEPS - EVENT - 1)
    assert sizes(history) == sizes(by_place(monkeypatch, place))


def test_a_step_without_an_update_is_looked_at_as_the_next_one_begins(
    asked: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop("backward", times=1)
    loop.optimizer = type("Nothing", (), {"step": lambda _: None})()
    with caplog.at_level(logging.WARNING, "graphopt"):
        loop.run(EVENT + 1)
        assert len(asked) <= 6 and not caplog.messages
        loop.model.eval()
        loop.model(loop.x)
        assert "It is not known if that was in the backward" in caplog.messages[-1]


def test_where_an_excess_is_an_error_it_is_one_in_the_very_step() -> None:
    loop = Loop("backward", on_excess="raise")
    loop.run(EVENT)
    with pytest.raises(BudgetError, match="in the backward, outside of the planned graphs"):
        loop.run(1)


def test_each_other_model_is_watched_by_itself(asked: list[int]) -> None:
    first, second = Loop(), Loop("backward", times=1, budget=2**26)
    for number in range(EVENT + 2):
        for loop in (first, second):
            loop.run(1)
        if number == EVENT - 1:
            asked.clear()
    one, two = (sizes(loop.model.graphopt.history) for loop in (first, second))  # type: ignore[union-attr]
    assert len(set(one[2:])) == len(set(two[2:])) == 1
    assert isinstance(first.model, nn.Module) and len(asked) == 1
