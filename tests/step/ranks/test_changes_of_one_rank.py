"""What only one rank changes or writes wrongly is an error on all, and what only its step does is told of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn, optim
from torch.nn import functional as F

import graphopt
from tests.support.ranks import run_ranks


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(dist.get_rank())
    return torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)


def append(model: nn.Sequential, optimizer: optim.Optimizer) -> None:
    model.append(nn.Linear(6, 6))
    optimizer.add_param_group({"params": list(model[-1].parameters())})


CHANGES: dict[str, Any] = {
    "hook": lambda model, _: model[0].weight.register_hook(lambda gradient: 5 * gradient),
    "replaced": lambda model, _: model.__setitem__(0, nn.Linear(6, 6)),
    "step": lambda _, optimizer: setattr(optimizer, "step", lambda: None),
    "append": append,
}


def refused(what: str, who: list[int]) -> list[str]:
    """What a rank reads, twice; nothing was sent, so that the group goes on."""
    model = nn.Sequential(nn.Linear(6, 6))
    optimizer = optim.SGD(model.parameters(), 0.1)
    step = graphopt.train_step(model, F.mse_loss, optimizer, cost_model="roofline")
    step(*batch())
    if dist.get_rank() in who:
        CHANGES[what](model, optimizer)
    found = []
    for _ in range(2):
        with pytest.raises(graphopt.UsageError) as error:
            step(*batch())
        found.append(str(error.value))
    return found


@pytest.mark.parametrize(
    ("what", "who", "said"),
    [
        ("hook", [1], "0.weight has a hook"),
        ("replaced", [0], "0.weight was replaced"),
        ("step", [1], "how it updates is sgd on rank 0 and step on rank 1"),
        ("append", [0, 1], "build the step anew, which gives all ranks the first one's"),
    ],
)
def test_a_change_that_cannot_be_trained_on_is_an_error_on_all(what: str, who: list[int], said: str) -> None:
    for messages in run_ranks(2, refused, what, who):
        assert all(said in message for message in messages)


def wrongly_written() -> str:
    model = nn.Linear(6, 6)
    clip: Any = 1.0 if dist.get_rank() == 1 else graphopt.ClipNorm(1.0)
    with pytest.raises(graphopt.UsageError) as error:
        graphopt.train_step(model, F.mse_loss, optim.SGD(model.parameters(), 0.1), clip=clip)
    return str(error.value)


def test_an_option_that_one_rank_writes_wrongly_is_an_error_on_all() -> None:
    assert all("clip: expected graphopt.ClipNorm(1.0)" in message for message in run_ranks(2, wrongly_written))
