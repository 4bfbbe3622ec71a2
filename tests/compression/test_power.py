"""PowerSGD: torch's own hook is the same algorithm, and what it stumbles over is no trouble here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from graphopt.compression.bucket import Bucket
from graphopt.compression.collectives import Sender
from graphopt.compression.interleaving import Interleaved
from graphopt.compression.methods import PowerSGD
from graphopt.compression.protocols import protocol_of
from graphopt.device.ranks import ranks_of
from tests.support.lockstep import start, step
from tests.support.ranks import run_ranks

SHAPES = ((48, 129), (40, 8, 3, 3))


@dataclass
class OneBucket:
    """What torch's hook reads of a GradBucket."""

    flat: Tensor

    def buffer(self) -> Tensor:
        return self.flat

    def gradients(self) -> list[Tensor]:
        sizes = [torch.Size(shape).numel() for shape in SHAPES]
        return [part.view(shape) for part, shape in zip(self.flat.split(sizes), SHAPES, strict=True)]

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True


def _first_queries(rank: int) -> list[Tensor]:
    """What torch's hook starts from, with seed 0."""
    torch.manual_seed(numpy.random.RandomState(0).randint(1_000_000_000))
    return [torch.randn(1, torch.Size(shape[1:]).numel(), rank)[0] for shape in SHAPES]


def _both(rank: int) -> list[float]:
    """The relative difference to torch's hook in each of four steps."""
    ranks = ranks_of()
    assert ranks is not None
    theirs = PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=2)
    theirs.iter = 2
    residuals, queries = [torch.zeros(shape) for shape in SHAPES], _first_queries(rank)
    generator, differences = torch.Generator().manual_seed(dist.get_rank()), []
    for _ in range(4):
        gradient = torch.randn(sum(torch.Size(shape).numel() for shape in SHAPES), generator=generator)
        mine = OneBucket(gradient / 2).gradients()
        state = {"residual": residuals, "query": queries}
        overflow = torch.zeros(())
        sender = Sender(ranks)
        interleaved = Interleaved(sender.begin, sender.finish)
        bucket = Bucket(SHAPES, mine, overflow, ranks.rank, ranks.world, ranks.backend, state)
        interleaved.start(protocol_of(PowerSGD(rank))(bucket))
        interleaved.finish(partial(sender.agree, overflow))
        bucket_of_theirs = OneBucket(gradient)
        powerSGD_hook(theirs, bucket_of_theirs).wait()
        wanted = torch.cat([tensor.flatten() for tensor in bucket_of_theirs.gradients()])
        got = torch.cat([tensor.flatten() for tensor in mine])
        differences.append(float((got - wanted).abs().max() / wanted.abs().max()))
    return differences


def test_it_is_torchs_algorithm() -> None:
    """To 1e-5 of the largest element: other sums in other orders, and bases made in float64."""
    for rank in (1, 3):
        for differences in run_ranks(2, _both, rank):
            assert max(differences) < 1e-5


@pytest.mark.parametrize("rank", (1, 4))
def test_a_matrix_of_its_rank_is_sent_whole(rank: int) -> None:
    left, right = torch.randn(60, 2), torch.randn(2, 70)
    ranks = start(PowerSGD(rank), {"a": left @ right}, 2)
    for _ in range(3):
        step(PowerSGD(rank), ranks, [{"a": left @ right}, {"a": left @ right}])
    kept = ranks[0].state["a"]["residual"].norm() / (left @ right).norm()
    assert kept < 1e-5 if rank >= 2 else kept > 0.01


def test_nothing_but_zeros_is_no_trouble_and_no_end() -> None:
    """torch's hook divides by zero here, and its queries are NaN for ever."""
    zeros, ones = {"a": torch.zeros(60, 70)}, {"a": torch.ones(60, 70)}
    ranks = start(PowerSGD(3), zeros, 2)
    for _ in range(2):
        step(PowerSGD(3), ranks, [zeros, zeros])
        assert not ranks[0].gradients["a"].any() and ranks[0].overflow == 0
    for _ in range(2):
        step(PowerSGD(3), ranks, [ones, ones])
    assert torch.allclose(ranks[0].gradients["a"], torch.full((60, 70), 2.0), atol=1e-5)


def test_gradients_come_and_go_at_the_loss_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(60, 70, generator=generator)
    plain, scaled = (start(PowerSGD(2), {"a": gradient}, 2) for _ in range(2))
    step(PowerSGD(2), plain, [{"a": gradient}, {"a": gradient}])
    step(PowerSGD(2), scaled, [{"a": gradient * 1024}, {"a": gradient * 1024}], scale=1024.0)
    assert torch.equal(plain[0].gradients["a"] * 1024, scaled[0].gradients["a"])
