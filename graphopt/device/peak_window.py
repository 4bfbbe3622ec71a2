"""The most that is allocated on a device between two looks, for any number of lookers at once."""

from __future__ import annotations

import weakref

import torch

from graphopt.device.cpu_counter import cpu_counter

#: The counter knows one peak, since it was last read: whoever reads it tells all others.
_lookers: list[weakref.ref[CpuWindow]] = []


class CpuWindow:
    """Bytes that torch's CPU allocator handed out since it is counted, over all threads."""

    def __init__(self) -> None:
        counter = cpu_counter()
        assert counter is not None
        self._live, self._peak, self._take_peak = counter.live_bytes, counter.peak_bytes, counter.take_peak_bytes
        self._peak_bytes = 0
        _lookers.append(weakref.ref(self, _lookers.remove))
        self.take()

    def live_bytes(self) -> int:
        """What is allocated now, of all that was allocated since the counter is there."""
        return self._live.value

    def peak_bytes(self) -> int:
        """The most that was allocated since the last `take`."""
        peak_bytes = self._peak.value
        return peak_bytes if peak_bytes > self._peak_bytes else self._peak_bytes

    def take(self) -> int:
        """The most that was allocated since the last call."""
        peak_bytes = self._take_peak()
        if len(_lookers) > 1:
            for there in tuple(_lookers):
                looker = there()
                if looker is not None and looker._peak_bytes < peak_bytes:
                    looker._peak_bytes = peak_bytes
        if not self._peak_bytes:
            return peak_bytes
        most, self._peak_bytes = max(peak_bytes, self._peak_bytes), 0
        return most


class CudaWindow:
    """Bytes that the caching allocator counts on a CUDA device. Its statistics are read and never reset.

    They are the user's. A peak is therefore known where it is higher than all before it, since the user last reset
    them; where it is not, what is allocated now stands for it, which is at most the peak.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._highest_bytes = torch.cuda.max_memory_allocated(device)

    def live_bytes(self) -> int:
        """What is allocated now."""
        return torch.cuda.memory_allocated(self._device)

    def take(self) -> int:
        """The most that was allocated since the last call, as far as it is known."""
        highest_bytes = torch.cuda.max_memory_allocated(self._device)
        is_known = highest_bytes > self._highest_bytes
        self._highest_bytes = highest_bytes
        return highest_bytes if is_known else self.live_bytes()


def peak_window(device: torch.device) -> CpuWindow | CudaWindow | None:
    """A window on a device's memory; None where it cannot be measured."""
    if device.type == "cuda":
        return CudaWindow(device)
    return CpuWindow() if device.type == "cpu" and cpu_counter() is not None else None
