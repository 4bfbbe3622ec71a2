"""Scratch memory that depends on data, in a training step: the operator is found, and counted where it runs."""

from __future__ import annotations

import warnings

import pytest
import torch

import graphopt
from tests.step.test_excesses import EAGER_BYTES, ROWS, WIDTH, Loop, Scratch, mark


@pytest.mark.parametrize("cost_model", ["auto", "roofline"])
def test_the_operator_is_named_and_its_scratch_is_counted_there(cost_model: str) -> None:
    loop = Loop(EAGER_BYTES, options={"cost_model": cost_model})
    loop(mark(0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            loop(mark(2_000_000))
    excess, located = (str(each.message) for each in caught if "graphopt" in str(each.message))
    assert "to find the one that takes it" in excess
    assert "with_scratch at" in located and "test_excesses.py" in located and "counts it there" in located
    assert [peak > loop.budget for peak in loop.peaks] == [False, True, False, False, False, False]
    assert loop.step.report.scratch[0].taken_bytes >= 2_000_000 and "with_scratch" in str(loop.step.report)
    assert all(step.measured_bytes <= step.predicted_bytes for step in list(loop.step.history)[3:])


def test_it_is_found_in_micro_batches_too() -> None:
    torch.manual_seed(0)
    model, x, y = Scratch(), torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)
    sgd = torch.optim.SGD(model.parameters(), lr=1e-2)
    step = graphopt.train_step(model, torch.nn.functional.mse_loss, sgd, 3_500_000, accumulate=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for count in (0, 2_000_000, 2_000_000, 2_000_000, 2_000_000):
            step(x, mark(count), y)
    peaks = [each.measured_bytes for each in step.history]
    assert peaks[1] > 3_500_000 >= max(peaks[3:])
    assert [operator.name for operator in step.report.scratch] == ["with_scratch"]
