"""The most that is allocated on a device between two looks, for any number of lookers at once."""

from __future__ import annotations

import weakref

import torch

from graphopt.device.cpu_counter import cpu_counter


class CpuWindow:
    """Bytes that torch's CPU allocator handed out since it is counted, over all threads.

    `live_bytes()` is what is allocated now, of all that was allocated since the counter is there, `peak_bytes()` the
    most that was since the last `take()`, and `take()` the same, which begins anew.
    """

    def __init__(self) -> None:
        counter = cpu_counter()
        assert counter is not None
        number = counter.open_window()
        # functions of C++: all of them are called in every step
        self.live_bytes, self.peak_bytes, self.take = counter.functions(number)
        weakref.finalize(self, counter.close_window, number).atexit = False
        self.take()


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
