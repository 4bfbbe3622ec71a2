"""How fast a depot takes values and gives them back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from graphopt.device.timing import synchronize
from graphopt.kernels.offload.depot import Depot

#: A transfer of the first tells what a call takes by itself; one of the last, or of one before it that takes so long
#: that the call is nothing beside it, how fast the link is.
_SIZES_BYTES = (2**12, 2**16, 2**19, 2**22)
_LONG_SECONDS = 0.01
_ROUNDS = 3


@dataclass(frozen=True)
class DepotLink:
    """Bytes a second to a depot and back, and seconds that a transfer takes beside that."""

    write_bytes_per_second: float
    read_bytes_per_second: float
    call_seconds: float

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
    return DepotLink(large.nbytes / write_seconds, large.nbytes / read_seconds, call_seconds)


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
