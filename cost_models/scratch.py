"""Scratch of ops: what an op allocates while it runs, beyond the outputs it leaves."""

from __future__ import annotations

import gc
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from graphopt.cost_models.inputs import runnable
from graphopt.cost_models.signature import Signature, tensors_in
from graphopt.measure import SPAN_PREFIX, trace_allocations

Scratch = tuple[int, tuple[int, ...]]
"""Workspace bytes, and the bytes of the storage of each tensor output."""


def scratch_bytes(calls: Sequence[Signature], device: torch.device) -> dict[str, Scratch]:
    """Run each call once more; return its scratch by key. Calls that fail are left out."""
    return _cuda_scratch(calls, device) if device.type == "cuda" else _cpu_scratch(calls)


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
            del output

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


def _cuda_scratch(calls: Sequence[Signature], device: torch.device) -> dict[str, Scratch]:
    scratch: dict[str, Scratch] = {}
    gc.collect()
    for call in calls:
        run = runnable(call)
        if run is None:
            continue
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        output = run()
        torch.cuda.synchronize(device)
        workspace_bytes = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
        scratch[call.key] = workspace_bytes, _storage_bytes(output)
        del output
    return scratch


def _storage_bytes(output: Any) -> tuple[int, ...]:
    return tuple(tensor.untyped_storage().nbytes() for tensor in tensors_in(output))
