"""What steps took comes to a logger, each step once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphopt
from graphopt.integrations.logging import HistoryLog, TensorBoardLogger
from tests.support.residual_blocks import blocks


class Kept:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []

    def log(self, values: dict[str, float], step: int, /) -> None:
        self.told.append((step, values))


def train(model: Any, steps: int, rows: int = 64) -> None:
    for _ in range(steps):
        model.zero_grad()
        model(torch.randn(rows, 64)).square().mean().backward()


def test_every_step_of_a_model_is_told_of_once() -> None:
    model, kept = graphopt.optimize(blocks(), "20MB", cost_model="roofline"), Kept()
    train(model, 1)
    log = HistoryLog(model, kept)
    log.flush()
    assert not kept.told  # what was before is no news
    for steps in (1, 3, 0, 6):  # from the fourth on they are measured as a whole
        train(model, steps)
        log.flush()
    history: Any = model.graphopt.history  # type: ignore[union-attr]
    assert [step for step, _ in kept.told] == list(range(10)) and len(history) == 11
    measured = [values["graphopt/measured_bytes"] for _, values in kept.told]
    assert measured == [step.measured_bytes for step in history[1:]] and min(measured) > 0
    assert all(values["graphopt/budget_bytes"] == 20e6 for _, values in kept.told)


def test_more_steps_than_a_history_keeps_are_told_of_as_far_as_it_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.run.watch.measured_step.KEPT_STEPS", 4)
    model, kept = graphopt.optimize(blocks(), "20MB", cost_model="roofline"), Kept()
    log = HistoryLog(model, kept)
    train(model, 6)
    log.flush()
    train(model, 1)
    log.flush()
    assert [step for step, _ in kept.told] == list(range(5))
    assert model.graphopt.measured_steps == 7  # type: ignore[union-attr]


def test_steps_over_the_budget_are_counted() -> None:
    plan: Any = graphopt.optimize(blocks(), "20MB", cost_model="roofline", example_inputs=torch.randn(64, 64)).graphopt
    room_bytes = plan.plan.minimum_bytes + 400_000 + 10_000
    reserve = 20_000_000 - room_bytes
    model, kept = graphopt.optimize(blocks(), "20MB", cost_model="roofline", reserve=reserve), Kept()
    log = HistoryLog(model, kept)
    with pytest.warns(UserWarning, match="a training step took"):
        for _ in range(3):
            model.zero_grad()
            loss = model(torch.randn(64, 64)).square().mean()
            _held = torch.empty(100_000)  # a loop's own
            loss.backward()
            log.flush()
    counts = [values["graphopt/steps_over_budget"] for _, values in kept.told]
    assert counts == [1, 1, 1]
    assert all(values["graphopt/budget_bytes"] == room_bytes for _, values in kept.told)


def test_a_whole_training_step_is_told_of_and_tensorboard_has_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    model = blocks()
    step = graphopt.train_step(
        model, nn.functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1), "6MiB", cost_model="roofline"
    )
    with SummaryWriter(str(tmp_path)) as writer:  # type: ignore[no-untyped-call]
        log = HistoryLog(step, TensorBoardLogger(writer))
        for _ in range(3):
            step(torch.randn(64, 64), torch.randn(64, 64))
            log.flush()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    told = events.Scalars("graphopt/measured_bytes")
    assert [each.step for each in told] == [0, 1, 2] == list(range(step.measured_steps))
    assert [each.value for each in told] == pytest.approx([each.measured_bytes for each in step.history])


def test_a_model_that_is_not_optimized_is_an_error() -> None:
    with pytest.raises(graphopt.UsageError, match="Linear has no measured steps"):
        HistoryLog(nn.Linear(1, 1), Kept())
