"""Ranks behind rate-limited links: the links are as slow as they say, and methods send the bytes they say."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import graphopt
from benchmarks.compression import network
from graphopt.compression.methods import DGC, QSGD, Compression, EightBit, HalfCast, PowerSGD, Threshold, TopK
from graphopt.compression.protocols import wire_bytes

pytestmark = pytest.mark.skipif(bool(network.missing()), reason=network.missing())
NUMBERS = 1_000_000
METHODS: tuple[Compression | None, ...] = (
    *(None, HalfCast(), HalfCast(torch.bfloat16), EightBit(), QSGD(8), QSGD(2), TopK(0.01), DGC(0.01)),
    *(Threshold(1e-6, 0.02), PowerSGD(8)),
)


def _all_reduce() -> tuple[float, int]:
    """Seconds of one sum of 4 MB, and the bytes that this rank sent for it."""
    numbers = torch.ones(NUMBERS)
    dist.barrier()
    before, start = network.sent(), time.perf_counter()
    dist.all_reduce(numbers)
    seconds = time.perf_counter() - start
    assert float(numbers[0]) == dist.get_world_size()
    return seconds, network.sent().since(before).payload_bytes


@pytest.mark.fast(1)
@pytest.mark.parametrize("world", [2, 4])
def test_a_link_is_as_slow_as_it_says_and_counts_what_is_sent(world: int) -> None:
    wire_bytes = 2 * (world - 1) / world * 4 * NUMBERS
    for seconds, sent_bytes in network.run_ranks_over_network(world, "100mbit", _all_reduce):
        assert sent_bytes == pytest.approx(wire_bytes, rel=0.01)
        # never faster than the wire but for what a bucket lets through at once
        assert seconds > 0.95 * wire_bytes / (100e6 / 8)


def _counted_and_stated() -> list[tuple[Compression | None, int, int]]:
    """Of each method as a hook of DDP: (method, bytes that this rank sent in a step, bytes that it says)."""
    return [(method, _counted_bytes(method), _stated_bytes(method)) for method in METHODS]


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))


def _stated_bytes(method: Compression | None) -> int:
    return wire_bytes(method, [tuple(p.shape) for p in _model().parameters()], dist.get_world_size())


def _counted_bytes(method: Compression | None) -> int:
    wrapped = DistributedDataParallel(_model())
    if method is not None:
        graphopt.compress_ddp(wrapped, method)
    inputs = torch.randn(4, 512)

    def steps(number: int) -> None:
        for _ in range(number):
            wrapped(inputs).square().mean().backward()

    steps(3)  # DDP makes its buckets anew in the first ones
    before = network.sent()
    steps(4)
    dist.barrier()
    return network.sent().since(before).payload_bytes // 4


@pytest.mark.fast(1)
@pytest.mark.parametrize("world", [2, 4])
def test_methods_send_the_bytes_that_they_say(world: int) -> None:
    for rows in network.run_ranks_over_network(world, "1gbit", _counted_and_stated):
        for method, counted_bytes, stated_bytes in rows:
            assert counted_bytes == pytest.approx(stated_bytes, rel=0.05), method


def test_nothing_is_left_behind_even_by_a_run_that_was_killed() -> None:
    program = "import os\nfrom benchmarks.compression import network\n"
    program += "with network.namespaces(2, '1gbit'): print(os.getpid(), flush=True); os._exit(1)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    killed = f"{network.PREFIX}{int(done.stdout)}-*"
    assert len(list(Path("/run/netns").glob(killed))) == 3
    with network.namespaces(2, "1gbit") as names:
        assert not list(Path("/run/netns").glob(killed))
        assert all((Path("/run/netns") / name).exists() for name in names)
    assert not list(Path("/run/netns").glob(f"{network.PREFIX}{os.getpid()}-*"))
