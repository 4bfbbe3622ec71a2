"""How fast a depot takes values and gives them back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from graphopt.device.timing import synchronize
from graphopt.kernels.offload.depot import Depot
from graphopt.kernels.offload.ops import arrived, fetch, settle, stow, use_depot

#: A transfer of the first tells what a call takes by itself; one of the last, or of one before it that takes so long
#: that the call is nothing beside it, how fast the link is.
_SIZES_BYTES = (2**12, 2**16, 2**19, 2**22)
_LONG_SECONDS = 0.01
_ROUNDS, _CALLS = 3, 9


@dataclass(frozen=True)
class DepotLink:
    """Bytes a second to a depot and back, and seconds that a transfer takes beside that.

    `host_seconds` are those of one call, begun or waited for, in which nothing computes: a value that goes and comes
    back takes four.
    """

    write_bytes_per_second: float
    read_bytes_per_second: float
    call_seconds: float
    host_seconds: float = 0.0

    def write_seconds(self, size_bytes: int) -> float:
        """What writing takes on the lane."""
        return self.call_seconds + size_bytes / self.write_bytes_per_second

    def read_seconds(self, size_bytes: int) -> float:
        """What reading back takes on the lane."""
        return self.call_seconds + size_bytes / self.read_bytes_per_second


def measure_link(depot: Depot, device: torch.device) -> DepotLink:
    """The link of a depot: medians of a few transfers, of which the first of each kind is not looked at."""
    small, *larger = (torch.zeros(size, dtype=torch.uint8, device=device) for size in _SIZES_BYTES)
    call_seconds = _median_seconds(device, lambda: depot.settle(depot.stow(small)))
    write_seconds, large = 0.0, small
    for large in larger:
        write_seconds = _median_seconds(device, lambda: depot.settle(depot.stow(large)))  # noqa: B023
        if write_seconds > _LONG_SECONDS:
            break
    token = depot.stow(large)
    depot.settle(token)
    read_seconds = _median_seconds(device, lambda: _read(depot, token))
    host_seconds = _host_seconds(depot, small)
    return DepotLink(large.nbytes / write_seconds, large.nbytes / read_seconds, call_seconds, host_seconds)


def _host_seconds(depot: Depot, small: torch.Tensor) -> float:
    """Of one call, as graphs make them: the median over values that go and come back, without their transfers."""
    label = "measured"
    use_depot(label, depot)
    like = (list(small.shape), list(small.stride()), small.dtype, small.device)
    times = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        token = stow(small, label)
        begun = time.perf_counter() - start
        depot.settle(token)
        start = time.perf_counter()
        settle(small, token, label)
        fetched = fetch(token, label, *like)
        begun += time.perf_counter() - start
        fetching = depot.fetch(token)
        depot.wait(token, fetching)  # behind the other one
        start = time.perf_counter()
        arrived(fetched, token)
        times.append((begun + time.perf_counter() - start) / 4)
    return median(times)


def _read(depot: Depot, token: torch.Tensor) -> torch.Tensor:
    fetching = depot.fetch(token)
    depot.wait(token, fetching)
    return fetching.memory


def _median_seconds(device: torch.device, transfer: Callable[[], object]) -> float:
    times = []
    for _ in range(_ROUNDS + 1):
        synchronize(device)
        start = time.perf_counter()
        transfer()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times[1:])
