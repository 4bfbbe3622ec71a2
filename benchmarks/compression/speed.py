"""Seconds and bytes of a step of 25 M parameters over a rate-limited link, for one way to train."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.compression.network import run_ranks_over_network, sent
from benchmarks.compression.ways import make, stated_bytes

#: 24 matrices of 1024 × 1024: 25.2 M parameters, 100.7 MB of gradients.
LAYERS, WIDTH, ROWS = 24, 1024, 4
WARM_UP_STEPS, MOST_STEPS, MOST_SECONDS = 3, 9, 25.0


@dataclass(frozen=True)
class Speed:
    """Median over steps of the slowest rank's seconds; bytes that rank 0 sent in a step, counted at its interface.

    `stated_bytes` is what the method says that it sends, 0 where it says nothing.
    """

    way: str
    world: int
    rate: str
    seconds: float
    least_seconds: float
    sent_bytes: int
    stated_bytes: int
    steps: int
    says: str


def measure_speed(way: str, world: int, rate: str, timeout: float = 400) -> Speed:
    """Train `way` for some steps on `world` ranks behind links of `rate`."""
    rows = run_ranks_over_network(world, rate, _timed_steps, way, timeout=timeout)
    slowest = [max(seconds) for seconds in zip(*(row[0] for row in rows), strict=True)]
    seconds, sent_bytes, says = statistics.median(slowest), rows[0][1], rows[0][2]
    stated = stated_bytes(way, [(WIDTH, WIDTH)] * LAYERS, world)
    return Speed(way, world, rate, seconds, min(slowest), sent_bytes, stated, len(slowest), says)


def _timed_steps(way: str) -> tuple[list[float], int, str]:
    """Seconds of each step on this rank, the bytes it sent in a step, and what the way says of itself."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    training = make(way, model, optimizer, nn.functional.mse_loss)
    torch.manual_seed(1 + dist.get_rank())
    batch = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)
    warm_up = [_seconds(training.step, *batch) for _ in range(WARM_UP_STEPS)]
    steps = torch.tensor(max(3, min(MOST_STEPS, int(MOST_SECONDS / warm_up[-1]))))
    dist.broadcast(steps, 0)
    before = sent()
    seconds = [_seconds(training.step, *batch) for _ in range(int(steps))]
    # a barrier's few bytes a step are in the count
    sent_bytes = sent().since(before).payload_bytes // int(steps)
    return seconds, sent_bytes, training.says()


def _seconds(step: object, inputs: Tensor, targets: Tensor) -> float:
    dist.barrier()
    start = time.perf_counter()
    step(inputs, targets)  # type: ignore[operator]
    return time.perf_counter() - start
