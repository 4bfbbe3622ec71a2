"""The processes that tests run in."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist

from graphopt.device.ranks import ranks_of
from tests.support.ranks import RankError, run_ranks


def _place_and_sum() -> tuple[int, int, float]:
    ranks = ranks_of()
    assert ranks is not None
    mine = torch.tensor(float(ranks.rank))
    dist.all_reduce(mine)
    return ranks.rank, ranks.world, float(mine)


def _fails_on_one() -> None:
    assert dist.get_rank() == 0, "this is rank one"


def _has_all_loaded() -> bool:
    return "tests.support.rank_server" in sys.modules


def test_a_rank_has_nothing_left_to_import() -> None:
    """The server says nothing where it cannot load what it should."""
    assert run_ranks(2, _has_all_loaded) == [True, True]


def test_every_rank_knows_its_place() -> None:
    assert run_ranks(3, _place_and_sum) == [(0, 3, 3.0), (1, 3, 3.0), (2, 3, 3.0)]


def test_a_rank_that_fails_is_named() -> None:
    with pytest.raises(RankError, match=r"rank 1: [^$]*this is rank one"):
        run_ranks(2, _fails_on_one)


def test_one_process_trains_alone() -> None:
    assert ranks_of() is None
