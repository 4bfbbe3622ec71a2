"""What one rank takes above its plan is planned for by all ranks, in the same call."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import graphopt
from tests.step.test_excesses import ROWS, WIDTH, Scratch, mark
from tests.support.ranks import run_ranks


def _step(budget_bytes: int | None, **options: Any) -> graphopt.TrainStep:
    torch.manual_seed(0)
    model = Scratch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    return graphopt.train_step(model, nn.functional.mse_loss, optimizer, budget_bytes, **options)


def _batch(number: int, scratch: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2 * number + dist.get_rank())
    x, y = torch.randn(2, ROWS, WIDTH, generator=generator)
    return x, mark(scratch), y


def _parameters(step: graphopt.TrainStep) -> list[np.ndarray[Any, Any]]:
    return [parameter.detach().numpy().copy() for parameter in step.model.parameters()]


def _trained(scratch: tuple[int, ...]) -> dict[str, Any]:
    """Steps in which rank 1 takes scratch memory."""
    roomy = _step(None)
    own = scratch if dist.get_rank() else (0,) * len(scratch)
    for number in range(len(scratch)):
        roomy(*_batch(number, 0))
    budget = roomy.plan.peak_bytes
    step = _step(budget)
    recomputed, error = [], None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, size in enumerate(own):
            try:
                step(*_batch(number, size))
            except graphopt.BudgetError as raised:
                error = str(raised)
                break
            recomputed.append(len(step.plan.graphs[0].recomputed))
    return {
        "told": sum("a training step took" in str(warning.message) for warning in caught),
        "recomputed": recomputed,
        "error": error,
        "is_inside": [each.measured_bytes <= budget for each in step.history],
        "is_same": all(map(np.array_equal, _parameters(roomy), _parameters(step))),
    }


def test_all_ranks_correct_in_the_same_call() -> None:
    quiet, scratched = run_ranks(2, _trained, (0, 0, 2_000_000, 2_000_000, 2_000_000, 2_000_000, 2_000_000))
    assert quiet["recomputed"] == scratched["recomputed"]
    assert not any(quiet["recomputed"][:3]) and all(quiet["recomputed"][3:])
    assert (quiet["told"], scratched["told"]) == (0, 1)
    assert all(quiet["is_inside"]) and all(scratched["is_inside"][-2:]) and not scratched["is_inside"][2]
    assert quiet["is_same"] and scratched["is_same"]


def test_what_came_once_on_one_rank_ends_no_training() -> None:
    for found in run_ranks(2, _trained, (0, 8_000_000, 0, 0)):
        assert found["error"] is None and found["is_same"]
        assert found["recomputed"][0] == found["recomputed"][1] == found["recomputed"][3] < found["recomputed"][2]


def test_where_no_plan_fits_beside_one_rank_all_raise() -> None:
    quiet, scratched = run_ranks(2, _trained, (0, 8_000_000, 8_000_000, 8_000_000))
    assert len(quiet["recomputed"]) == len(scratched["recomputed"]) == 3
    assert "too small" in quiet["error"] and "too small" in scratched["error"]


def _strict() -> str:
    step = _step(3_600_000, on_excess="raise")
    step(*_batch(0, 0))
    with pytest.raises(graphopt.BudgetError) as raised:
        step(*_batch(1, 8_000_000 * dist.get_rank()))
    return str(raised.value)


def test_on_excess_raise_raises_on_all() -> None:
    quiet, scratched = run_ranks(2, _strict)
    assert "rank 1: a training step took" in quiet and scratched in quiet
