"""Running ops for real and timing them: in the middle of a capture, on a machine that may be busy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.utils._python_dispatch import _disable_current_modes

try:
    import resource
except ImportError:  # not on Windows, where no run is taken for disturbed
    resource = None  # type: ignore[assignment]

_BATCH_SECONDS = 1e-3
"""Short calls are timed many at a time, so that the clock's own cost and its grain do not show."""
_TOTAL_SECONDS = 0.03
_LONG_SECONDS = 1.0
_BATCHES = 7


@contextmanager
def plain_execution(device: torch.device) -> Iterator[None]:
    """Ops inside run for real and leave no trace: no fake tensors, no autocast, no autograd, same random state.

    Cost models, and what processes tell each other, are called in the middle of a capture, where all of these are on.
    """
    devices = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch._C.DisableTorchFunction())
        # It would hold Python's lock all through an op: a collective that waits for a thread then waits for ever.
        stack.enter_context(torch._C._DisablePythonDispatcher())
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        yield


def least_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call of `run` (warmed up before), the least of several: other processes only ever add.

    Takes some 30 ms, or three calls where they are longer, or one where it takes a second.
    """
    seconds, disturbed = _least_seconds(run, device)
    if disturbed and device.type == "cpu" and seconds < _LONG_SECONDS and torch.get_num_threads() > 1:
        # Where a core is taken away, the threads of a parallel op wait for each other by whole time
        # slices and a 0.1 ms op takes 8 ms; one thread has nobody to wait for.
        with _one_thread():
            seconds = min(seconds, _least_seconds(run, device)[0])
    return seconds


def seconds_of(run: Callable[[], object], device: torch.device, repetitions: int = 1) -> float:
    """Wall time of `repetitions` calls, with what they queued on the device."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repetitions):
        run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for what is queued on a CUDA device; nothing elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _least_seconds(run: Callable[[], object], device: torch.device) -> tuple[float, bool]:
    """Least time of a call, and whether the process lost its core while it was taken."""
    switches = _lost_cores()
    first = seconds_of(run, device)
    if first > _LONG_SECONDS:
        return first, _lost_cores() > switches
    repetitions = max(1, min(100, int(_BATCH_SECONDS / max(first, 1e-7))))
    best, disturbed = math.inf, False
    spent, batches = first, 0
    while batches < 2 or (batches < _BATCHES and spent < _TOTAL_SECONDS):
        switches = _lost_cores()
        batch_seconds = seconds_of(run, device, repetitions)
        if batch_seconds < best:
            best, disturbed = batch_seconds, _lost_cores() > switches
        spent, batches = spent + batch_seconds, batches + 1
    return best / repetitions, disturbed


def _lost_cores() -> int:
    """How often the system has taken a core from one of the process's threads so far."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
