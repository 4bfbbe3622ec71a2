"""How fast the ranks of a group reach each other, measured with a few messages."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass

import torch
import torch.distributed as dist

from graphopt.device.ranks import Ranks

TINY_MESSAGES = 5
SMALLEST_BYTES, LARGEST_BYTES = 1 << 16, 1 << 25
#: A message that takes as long tells enough.
LONG_SECONDS = 0.1
GROWTH = 4


@dataclass(frozen=True)
class Link:
    """What a rank sends in a second while all others do, and the seconds of a message without content."""

    bytes_per_second: float
    latency_seconds: float

    def seconds(self, sent_bytes: int, messages: int) -> float:
        """Of messages one behind the other, in which each rank sends that many bytes in all."""
        return sent_bytes / self.bytes_per_second + messages * self.latency_seconds

    def __str__(self) -> str:
        megabytes = self.bytes_per_second / 1e6
        return f"{megabytes:,.1f} MB/s from each rank, {1000 * self.latency_seconds:.2f} ms a message"


_measured: weakref.WeakKeyDictionary[dist.ProcessGroup, Link] = weakref.WeakKeyDictionary()


def link_of(ranks: Ranks, device: torch.device) -> Link:
    """The group's link, measured once, so that whoever plans for it plans alike. A collective call the first time."""
    if ranks.group not in _measured:
        _measured[ranks.group] = measure_link(ranks, device)
    return _measured[ranks.group]


def measure_link(ranks: Ranks, device: torch.device) -> Link:
    """By sums over all ranks that grow until one takes a tenth of a second. A collective call; alike on all ranks.

    Takes about 0.2 s; on a link below 5 Mbit/s what two sums of 64 KiB take.
    """
    latency = min(_slowest_seconds(ranks, 4, device) for _ in range(TINY_MESSAGES))
    size_bytes = SMALLEST_BYTES
    while True:
        seconds = _slowest_seconds(ranks, size_bytes, device)
        if seconds >= LONG_SECONDS or size_bytes >= LARGEST_BYTES:
            break
        size_bytes *= GROWTH
    if seconds < 2 * LONG_SECONDS:  # quick enough to look twice
        seconds = min(seconds, _slowest_seconds(ranks, size_bytes, device))
    sent_bytes = 2 * (ranks.world - 1) * size_bytes / ranks.world
    return Link(sent_bytes / max(seconds - latency, 1e-9), latency)


def _slowest_seconds(ranks: Ranks, size_bytes: int, device: torch.device) -> float:
    """Of one sum of this size over all ranks, on the rank where it took longest."""
    message = torch.zeros(size_bytes // 4, device=device)
    dist.barrier(group=ranks.group)
    start = time.perf_counter()
    dist.all_reduce(message, group=ranks.group)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return highest(ranks, [time.perf_counter() - start], device)[0]


def highest(ranks: Ranks, numbers: list[float], device: torch.device) -> list[float]:
    """Of each number the highest of all ranks. A collective call."""
    agreed = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(agreed, dist.ReduceOp.MAX, group=ranks.group)
    return [float(number) for number in agreed]
