"""The CPU counter counts what torch's allocator hands out, over all threads, and changes nothing else."""

from __future__ import annotations

import threading

import pytest
import torch

from graphopt.device.cpu_counter import cpu_counter
from graphopt.device.measure import trace_allocations
from graphopt.device.peak_window import CpuWindow, peak_window


def test_a_window_knows_the_peak_since_it_was_last_read() -> None:
    window = CpuWindow()
    before = window.live_bytes()
    a = torch.empty(1000)
    b = torch.empty(500)
    del a
    assert window.live_bytes() - before == 2000
    assert window.take() - before == 6000
    assert window.take() - before == 2000
    del b
    assert window.live_bytes() == before


def test_windows_do_not_disturb_each_other() -> None:
    one, other = CpuWindow(), CpuWindow()
    before = one.live_bytes()
    torch.empty(1000)
    assert one.take() - before == 4000
    torch.empty(100)
    assert other.take() - before == 4000
    assert one.take() - before == 400


def test_other_threads_count() -> None:
    window = CpuWindow()
    before = window.live_bytes()
    held = []
    thread = threading.Thread(target=lambda: held.append(torch.ones(10_000)))
    thread.start()
    thread.join()
    assert window.live_bytes() - before == 40_000


def test_a_window_that_opens_where_another_closed_starts_anew() -> None:
    first, closed = CpuWindow(), CpuWindow()
    before = first.live_bytes()
    torch.empty(10_000, dtype=torch.uint8)
    assert closed.take() - before == 10_000
    torch.empty(5_000, dtype=torch.uint8)
    assert first.take() - before == 10_000
    del closed
    opened = CpuWindow()
    torch.empty(1_000, dtype=torch.uint8)
    assert opened.peak_bytes() - before == opened.take() - before == first.take() - before == 1_000


def test_a_block_from_before_the_counter_is_not_counted_when_it_goes() -> None:
    counter = cpu_counter()
    assert counter is not None
    before = CpuWindow().live_bytes()
    torch.frombuffer(bytearray(4096), dtype=torch.float32)
    assert CpuWindow().live_bytes() == before


@pytest.mark.parametrize("size", [1, 15, 64, 4097, 1 << 20])
def test_blocks_are_aligned_and_the_profiler_sees_their_true_size(size: int) -> None:
    cpu_counter()
    made: list[torch.Tensor] = []
    trace = trace_allocations(lambda: made.append(torch.empty(size, dtype=torch.uint8)))
    assert made[0].data_ptr() % 64 == 0
    assert size in [event.size_bytes for event in trace.events]


def test_too_much_is_refused_in_torchs_words() -> None:
    cpu_counter()
    with pytest.raises(RuntimeError, match="allocate memory"):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_resizing_sharing_and_empty_tensors_work() -> None:
    window = CpuWindow()
    before = window.live_bytes()
    x = torch.empty(0)
    x.resize_(100)
    x.untyped_storage().resize_(4000)
    assert window.live_bytes() - before >= 4000
    y = torch.arange(8.0).share_memory_()
    assert y.sum() == 28
    del x
    assert window.live_bytes() == before


def test_where_nothing_can_be_measured() -> None:
    assert peak_window(torch.device("meta")) is None
