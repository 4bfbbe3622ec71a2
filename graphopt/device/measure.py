"""Measuring a training step from outside: peak bytes, bytes over time, ratio of two times.

What counts is what PyTorch's allocator hands out, in requested bytes. On CPU that comes from the
profiler's allocator events, which see scratch inside ops; memory that a library takes for itself
(oneDNN's scratchpads, OpenMP stacks) is not the allocator's and is counted by nobody.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.autograd import profiler

from graphopt.base.errors import UsageError
from graphopt.device.elsewhere import holder_of
from graphopt.device.storages import stored_parts

SPAN_PREFIX = "graphopt:"
"""A `torch.profiler.record_function` whose name starts so becomes a span of the trace."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """One allocator event: `size_bytes` is positive for an allocation, negative for a free."""

    time_ns: int
    size_bytes: int
    address: int
    device: torch.device


@dataclass(frozen=True, slots=True)
class AllocatorTrace:
    """Allocator events in time order over all threads, and (start, end) in ns of each named span."""

    events: tuple[Allocation, ...]
    spans: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Times of `a` over times of `b`: median of the rounds, quartiles, and both medians in seconds."""

    median: float
    lower_quartile: float
    upper_quartile: float
    a_seconds: float
    b_seconds: float


def profiler_is_running() -> bool:
    """Whether somebody's profiler is on; a second one would destroy its records."""
    return bool(torch.autograd._profiler_enabled() or profiler._is_profiler_enabled)  # type: ignore[attr-defined]


def trace_allocations(step: Callable[[], object]) -> AllocatorTrace:
    """Run `step` once and return every allocator event of it (CPU and CUDA alike).

    Seen are this thread and those that PyTorch starts for it (autograd's), not threads that the
    user starts. The free of a block that was allocated while no profiler was on is no event.
    Raises UsageError where a profiler is already running.
    """
    if profiler_is_running():
        raise UsageError("a profiler is already running: stop it before measuring memory")
    _quiet_kineto()
    with collected_garbage(), profiler.profile(profile_memory=True, use_kineto=True) as session:
        step()
    return _read_trace(session)


def peak_bytes(step: Callable[[], object], resident: Iterable[torch.Tensor], device: torch.device | str) -> int:
    """Run `step` once; return the highest number of bytes allocated on `device` while it ran.

    On CPU: the unique storages of `resident` (allocated before the step: parameters, buffers, inputs)
    plus the highest sum of allocations minus frees made by the step. Blocks that are neither resident
    nor allocated by the step are left out, and so is their free. A resident block counts to the
    end of the step unless the profiler sees it freed, so the figure is an upper bound where the step frees
    what was there before; drop old gradients before the call.
    On CUDA: `torch.cuda.max_memory_allocated()` over the step, which counts everything on the device.
    Raises UsageError for other devices, and where a profiler is already running.
    """
    device = torch.device(device)
    if device.type == "cuda":
        with collected_garbage():
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            step()
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_allocated(device)
    return max(live for _, live in memory_timeline(step, resident, device))


def memory_timeline(
    step: Callable[[], object], resident: Iterable[torch.Tensor], device: torch.device | str
) -> list[tuple[float, int]]:
    """Run `step` once; return (seconds since its start, bytes allocated on `device` from then on).

    The first point is the resident bytes. Counts what `peak_bytes` counts on CPU, on CUDA too.
    Raises UsageError for devices that are neither, and where a profiler is already running.
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"memory can be measured on cpu and cuda, not on {device}")
    blocks = _unique_storages(resident, device)
    trace = trace_allocations(step)
    events = [event for event in trace.events if _same_device(event.device, device)]
    start_ns = events[0].time_ns if events else 0
    live_bytes = sum(blocks.values())
    timeline = [(0.0, live_bytes)]
    for event in events:
        if event.size_bytes >= 0:
            blocks[event.address] = event.size_bytes
            live_bytes += event.size_bytes
        elif event.address in blocks:
            live_bytes -= blocks.pop(event.address)
        timeline.append(((event.time_ns - start_ns) / 1e9, live_bytes))
    return timeline


def ratio(a: Callable[[], object], b: Callable[[], object], rounds: int = 9) -> Ratio:
    """Time `a` against `b` in alternating rounds (seconds each), after one run of both.

    Who goes first changes every round, so that drift of the machine falls on both.
    """
    if rounds < 1:
        raise UsageError(f"rounds must be at least 1, got {rounds}")
    a(), b()
    times: tuple[list[float], list[float]] = ([], [])
    for round_number in range(rounds):
        for which in (0, 1) if round_number % 2 == 0 else (1, 0):
            times[which].append(_seconds((a, b)[which]))
    ratios = sorted(x / y for x, y in zip(*times, strict=True))
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive") if rounds > 1 else ratios * 3
    return Ratio(median, lower, upper, statistics.median(times[0]), statistics.median(times[1]))


def _seconds(run: Callable[[], object]) -> float:
    with collected_garbage():
        _synchronize()
        start = time.perf_counter()
        run()
        _synchronize()
        return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _unique_storages(tensors: Iterable[torch.Tensor], device: torch.device) -> dict[int, int]:
    """Address -> bytes of every storage on `device`."""
    parts = (part for tensor in tensors for part in stored_parts(tensor))
    storages = (
        part.untyped_storage() for part in parts if _same_device(part.device, device) and holder_of(part) is None
    )
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes() > 0}


def _same_device(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type and (one.type == "cpu" or (one.index or 0) == (other.index or 0))


def _read_trace(session: profiler.profile) -> AllocatorTrace:
    """Walk the profiler's event tree: its allocation events carry addresses, the flat list does not."""
    result = session.kineto_results
    assert result is not None
    events, spans = [], {}
    pending = list(reversed(result.experimental_event_tree()))
    while pending:  # in the order of start on each thread, which the stable sort keeps where times are equal
        event = pending.pop()
        pending.extend(reversed(event.children))
        if event.tag == torch._C._profiler._EventType.Allocation:
            extra = event.extra_fields
            events.append(Allocation(event.start_time_ns, extra.alloc_size, extra.ptr or 0, extra.device))  # type: ignore
        elif event.name.startswith(SPAN_PREFIX):
            spans[event.name] = (event.start_time_ns, event.end_time_ns)
    return AllocatorTrace(tuple(sorted(events, key=lambda event: event.time_ns)), spans)


@contextmanager
def collected_garbage() -> Iterator[None]:
    """Collect now and not again inside: a collection at some moment would move the peak."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _quiet_kineto() -> None:
    """Kineto logs every session on stderr unless told not to, before its first use."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
