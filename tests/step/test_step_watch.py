"""A training step is measured: what is seen is what the profiler sees, and an excess is told."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import graphopt
from graphopt.device.measure import peak_bytes
from tests.support.residual_blocks import blocks


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_step_is_measured_as_the_profiler_sees_it(kind: str, accumulate: int) -> None:
    model, batch = blocks(), (torch.randn(64, 64), torch.randn(64, 64))
    make = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind]
    optimizer = make(model.parameters(), lr=1e-3)
    step = graphopt.train_step(model, nn.functional.mse_loss, optimizer, "6MiB", accumulate=accumulate)
    for _ in range(3):
        step(*batch)
    there = [*model.parameters(), *step.accumulators, *batch]
    there += [value for state in optimizer.state.values() for value in state.values()]
    measured = peak_bytes(lambda: step(*batch), there, "cpu")
    last = step.history[-1]
    assert last.measured_bytes == measured <= last.predicted_bytes <= 6 * 2**20
    assert len(step.history) == 4


def test_an_excess_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = blocks(), (torch.randn(64, 64), torch.randn(64, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    step = graphopt.train_step(model, nn.functional.mse_loss, optimizer, "6MiB", cost_model="roofline")
    step(*batch)
    # the optimizer's own step is no part of the graph, and may take what it likes
    monkeypatch.setattr(step._memory, "budget_bytes", step.history[-1].measured_bytes - 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            step(*batch)
    (told,) = (str(warning.message) for warning in caught if "a training step took" in str(warning.message))
    assert ", 1 bytes more than the budget" in told
