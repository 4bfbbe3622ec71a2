"""Scratch of ops: what an op allocates while it runs, beyond the outputs it leaves."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

from graphopt.cost_models.inputs import make_arguments, runnable
from graphopt.cost_models.signature import Signature
from graphopt.device.measure import SPAN_PREFIX, collected_garbage, profiler_is_running, trace_allocations
from graphopt.device.peak_window import peak_window
from graphopt.device.storages import tensors_in

Scratch = tuple[int, tuple[int, ...]]
"""Workspace bytes, and the bytes of the storage of each tensor output."""


def scratch_bytes(calls: Sequence[Signature], device: torch.device) -> dict[str, Scratch]:
    """Run each call once more; return its scratch by key. Calls that fail are left out."""
    if device.type == "cuda":
        return _cuda_scratch(calls, device)
    return _scratch_beside_profiler(calls) if profiler_is_running() else _cpu_scratch(calls)


def scratch_of_one(call: Signature) -> Scratch | None:
    """As `scratch_bytes`, of one call whose like ran before: it is run once. None where it fails."""
    window = peak_window(call.device) if call.device.type == "cpu" else None
    if window is None:
        return scratch_bytes([call], call.device).get(call.key)
    try:
        args, kwargs = make_arguments(call)
        window.take()
        output = call.target(*args, **kwargs)
    except Exception:  # whatever an operator may raise for contents that it was not made for
        return None
    return window.take() - window.live_bytes(), _storage_bytes(output)


def _cpu_scratch(calls: Sequence[Signature]) -> dict[str, Scratch]:
    """One profiler session over all calls: a session costs as much as a thousand small ops."""
    storages: dict[str, tuple[int, ...]] = {}

    def run_all() -> None:
        for number, call in enumerate(calls):
            run = runnable(call)
            if run is None:
                continue
            with torch.profiler.record_function(f"{SPAN_PREFIX}{number}"):
                output = run()
            storages[call.key] = _storage_bytes(output)
            del run, output  # room for the next one

    trace = trace_allocations(run_all)
    events = [event for event in trace.events if event.device.type == "cpu"]
    times = [event.time_ns for event in events]
    live = [0, *accumulate(event.size_bytes for event in events)]
    scratch: dict[str, Scratch] = {}
    for number, call in enumerate(calls):
        if call.key in storages:
            start, end = trace.spans[f"{SPAN_PREFIX}{number}"]
            first, last = bisect_left(times, start), bisect_right(times, end)
            # The outputs are still alive at the end of the span, so they cancel out.
            scratch[call.key] = max(live[first : last + 1]) - live[last], storages[call.key]
    return scratch


def _scratch_beside_profiler(calls: Sequence[Signature]) -> dict[str, Scratch]:
    """As `_cpu_scratch`, where the user's profiler is on: a second session would destroy its records.

    The old profiler keeps to its own thread and disturbs nobody; a new thread is where none is on.
    """
    scratch: dict[str, Scratch] = {}

    def run_all() -> None:
        for call in calls:
            with torch.no_grad():
                run = runnable(call)
                if run is not None:
                    scratch[call.key] = _legacy_scratch(run)

    thread = threading.Thread(target=run_all)
    thread.start()
    thread.join()
    return scratch


def _legacy_scratch(run: Callable[[], Any]) -> Scratch:
    profiler: Any = torch.autograd
    config = profiler.ProfilerConfig(
        profiler.ProfilerState.CPU, False, True, False, False, False, torch._C._profiler._ExperimentalConfig()
    )
    profiler._enable_profiler_legacy(config)
    try:
        output = run()
    finally:
        threads = profiler._disable_profiler_legacy()
    events = [event.cpu_memory_usage() for events in threads for event in events if event.kind() == "memory_alloc"]
    live = [0, *accumulate(events)]
    return max(live) - live[-1], _storage_bytes(output)


def _cuda_scratch(calls: Sequence[Signature], device: torch.device) -> dict[str, Scratch]:
    scratch: dict[str, Scratch] = {}
    with collected_garbage():  # what it freed in the middle of a call would count as the call's
        for call in calls:
            run = runnable(call)
            if run is not None:
                # A library may take something for good at a call that is not its first: the lesser one knows better.
                scratch[call.key] = min(_cuda_scratch_of(run, device) for _ in range(2))
            del run
    return scratch


def _cuda_scratch_of(run: Callable[[], Any], device: torch.device) -> Scratch:
    """Of a call that ran before. What is there before and what it leaves, outputs among it, is not scratch."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    output = run()
    torch.cuda.synchronize(device)
    after = torch.cuda.memory_allocated(device)
    return torch.cuda.max_memory_allocated(device) - max(before, after), _storage_bytes(output)


def _storage_bytes(output: Any) -> tuple[int, ...]:
    return tuple(tensor.untyped_storage().nbytes() for tensor in tensors_in(output))
