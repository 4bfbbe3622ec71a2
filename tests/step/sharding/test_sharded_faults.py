"""Ranks that die or hang in the middle of a sharded step: an error that says so, and parameters as they were."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import optim

import graphopt
from graphopt.base.errors import RankError
from tests.support.ranks import RankError as ProcessError
from tests.support.ranks import run_ranks
from tests.support.sharded import language_loss, part, seeded

_TIMEOUT_SECONDS = 2.0


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    time.sleep(4 * _TIMEOUT_SECONDS)


def failing(how: Callable[[], None]) -> tuple[float, bool]:
    """Seconds until the other rank knows, and whether its rows are as they were before the step."""
    group = dist.new_group([0, 1], timeout=timedelta(seconds=_TIMEOUT_SECONDS))
    model = seeded()
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    step = graphopt.train_step(model, language_loss, optimizer, shard=True, group=group, cost_model="roofline")
    rank = dist.get_rank()
    for i in range(2):
        step(*part(i, rank, 4))
    rows = [parameter.detach().clone() for parameter in model.parameters()]
    if rank == 1:
        before = dist.reduce

        def fails(*args: Any, **options: Any) -> Any:
            how()
            return before(*args, **options)

        dist.reduce = fails
    start = time.monotonic()
    with pytest.raises(RankError, match="lost the other 1 in the middle of a training step"):
        step(*part(2, rank, 4))
    return time.monotonic() - start, all(map(torch.equal, rows, model.parameters()))


def test_a_rank_that_dies_is_an_error_at_once() -> None:
    with pytest.raises(ProcessError, match="rank 1: the process died") as raised:
        run_ranks(2, failing, _die)
    assert "rank 0" not in str(raised.value)


@pytest.mark.slow
def test_a_rank_that_hangs_is_an_error_after_the_timeout() -> None:
    (seconds, is_unchanged), _ = run_ranks(2, failing, _hang)
    assert _TIMEOUT_SECONDS * 0.5 < seconds < _TIMEOUT_SECONDS * 3
    assert is_unchanged


def different(what: str) -> str:
    model = seeded()
    rank = dist.get_rank()
    rate = 1e-3 * (1 + rank) if what == "rate" else 1e-3
    shard = what != "shard" or rank == 0
    try:
        step = graphopt.train_step(
            model, language_loss, optim.AdamW(model.parameters(), lr=rate), shard=shard, cost_model="roofline"
        )
        step(*part(0, rank, 4))
    except graphopt.GraphoptError as error:
        return str(error)
    return "nothing"


def test_other_settings_on_a_rank_are_an_error_on_all() -> None:
    for said in run_ranks(2, different, "rate"):
        assert "lr of group 0 is 0.001 on rank 0 and 0.002 on rank 1" in said


def test_a_rank_that_does_not_share_out_is_an_error_on_all() -> None:
    for said in run_ranks(2, different, "shard"):
        assert "shard" in said
