"""Tools that look for a batch size: a budget that is too small is to them what being out of memory is."""

from __future__ import annotations

import pickle

import pytest
import torch
from accelerate.utils import find_executable_batch_size
from pytorch_lightning.utilities.memory import is_oom_error
from torch import nn

import graphopt


def blocks() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32)) for _ in range(3)])


def too_small() -> graphopt.BudgetError:
    with pytest.raises(graphopt.BudgetError) as error:
        graphopt.optimize(blocks(), "300KB", example_inputs=torch.randn(512, 32))
    return error.value


@pytest.mark.slow
def test_accelerate_comes_to_the_largest_of_its_batches_that_fits() -> None:
    tried = []

    @find_executable_batch_size(starting_batch_size=512)  # type: ignore[untyped-decorator]
    def train(batch_size: int) -> int:
        tried.append(batch_size)
        model = graphopt.optimize(blocks(), "450KB")
        for _ in range(2):
            model.zero_grad()
            model(torch.randn(batch_size, 32)).square().mean().backward()
        assert model.graphopt.plan.peak_bytes <= 450_000  # type: ignore[union-attr]
        return batch_size

    found = train()
    assert tried[0] == 512 and found == tried[-1] < 512 and len(tried) > 1


def test_lightning_knows_it() -> None:
    assert is_oom_error(too_small())
    assert not is_oom_error(graphopt.UsageError("something else"))


def test_its_words_are_for_people_and_it_is_pickled_whole() -> None:
    error = too_small()
    assert "DefaultCPUAllocator" not in str(error) and "is too small" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and copy.args == error.args
    assert copy.minimum_bytes == error.minimum_bytes and copy.drivers == error.drivers
