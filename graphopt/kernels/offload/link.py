"""How fast a depot takes values and gives them back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from graphopt.device.timing import synchronize
from graphopt.kernels.offload.depot import Depot

#: Large enough that a call's own time is nothing, small enough for a slow link.
_LARGE_BYTES, _SMALL_BYTES = 2**22, 2**12
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
    small = torch.zeros(_SMALL_BYTES, dtype=torch.uint8, device=device)
    large = torch.zeros(_LARGE_BYTES, dtype=torch.uint8, device=device)
    call_seconds = _median_seconds(device, lambda: depot.settle(depot.stow(small)))
    write_seconds = _median_seconds(device, lambda: depot.settle(depot.stow(large)))
    token = depot.stow(large)
    depot.settle(token)
    read_seconds = _median_seconds(device, lambda: _read(depot, token))
    return DepotLink(_LARGE_BYTES / write_seconds, _LARGE_BYTES / read_seconds, call_seconds)


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
