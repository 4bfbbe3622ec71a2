"""Measured bytes against sums done by hand."""

from __future__ import annotations

import gc
import time

import pytest
import torch

from graphopt.base.errors import UsageError
from graphopt.device.measure import Ratio, memory_timeline, peak_bytes, ratio, trace_allocations


def floats(count: int) -> torch.Tensor:
    return torch.empty(count)


def alloc_then_free() -> object:
    a = floats(500)
    b = floats(250)
    del a
    c = floats(300)
    return b, c


def free_first() -> object:
    a = floats(500)
    del a
    return floats(400)


def views() -> object:
    a = floats(1000)
    return a.view(10, 100), a[5:], a.t()


def in_place() -> object:
    a, b = floats(1000), floats(1000)
    return a.add_(b).mul_(a)


@pytest.mark.parametrize(
    ("step", "floats_at_peak"),
    [(alloc_then_free, 750), (free_first, 500), (views, 1000), (in_place, 2000), (lambda: None, 0)],
)
def test_peak_is_exact(step, floats_at_peak):
    assert peak_bytes(step, [], "cpu") == 4 * floats_at_peak


def test_resident_storages_count_once():
    x = floats(1000)
    assert peak_bytes(alloc_then_free, [x, x[10:], x.view(10, 100), floats(7)], "cpu") == 4 * (1000 + 7 + 750)


def test_resident_freed_in_the_step_makes_room():
    box = []
    trace_allocations(lambda: box.append(floats(1000)))  # allocated in sight, so its free is seen

    def step() -> None:
        box.clear()
        box.append(floats(100))

    assert peak_bytes(step, iter(box), "cpu") == 4000  # a list would hold the block itself


def test_free_of_a_block_that_is_not_counted_makes_no_room():
    box = []
    trace_allocations(lambda: box.append(floats(1000)))

    def step() -> None:
        box.clear()
        box.append(floats(300))

    assert peak_bytes(step, [floats(10)], "cpu") == 40 + 1200


def test_backward_is_seen():
    weight = torch.ones(1000, requires_grad=True)

    def step() -> None:
        (weight.exp() * 1.0).backward(torch.ones(1000))

    # exp's result is saved; its product's gradient arrives as 4,000 bytes beside the product.
    peak = peak_bytes(step, [weight], "cpu")
    assert peak >= 4 * (1000 + 1000 + 1000 + 1000)
    assert peak <= 4 * 6000
    assert weight.grad is not None


def test_scratch_inside_an_op_is_seen():
    assert peak_bytes(lambda: torch.ones(1000).sort(), [], "cpu") >= 4000 + 4000 + 8000


def test_garbage_of_before_is_gone_and_collection_is_off():
    seen = []
    peak_bytes(lambda: seen.append(gc.isenabled()), [], "cpu")
    assert seen == [False]
    assert gc.isenabled()


def test_timeline_ends_where_the_step_ends():
    kept = []

    def step() -> None:
        kept.append(floats(100))
        floats(200)

    timeline = memory_timeline(step, [floats(50)], "cpu")
    assert [live for _, live in timeline] == [200, 600, 1400, 600]
    assert [at for at, _ in timeline] == sorted(at for at, _ in timeline)


def test_other_devices_and_running_profilers_are_refused():
    with pytest.raises(UsageError, match="meta"):
        peak_bytes(lambda: None, [], "meta")
    with torch.profiler.profile(), pytest.raises(UsageError, match="already running"):
        peak_bytes(lambda: None, [], "cpu")


def test_failing_step_leaves_the_profiler_off():
    with pytest.raises(ZeroDivisionError):
        peak_bytes(lambda: 1 / 0, [], "cpu")
    assert peak_bytes(free_first, [], "cpu") == 2000


def test_ratio_of_sleeps():
    found = ratio(lambda: time.sleep(0.02), lambda: time.sleep(0.01), rounds=5)
    assert isinstance(found, Ratio)
    assert 1.5 < found.median < 2.5
    assert found.lower_quartile <= found.median <= found.upper_quartile
    assert found.b_seconds >= 0.01


def test_ratio_needs_a_round():
    with pytest.raises(UsageError, match="rounds"):
        ratio(lambda: None, lambda: None, rounds=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_peak_counts_the_device():
    before = torch.cuda.memory_allocated()
    peak = peak_bytes(lambda: torch.empty(2**20, device="cuda"), [], "cuda")
    assert peak == before + 4 * 2**20
    timeline = memory_timeline(lambda: torch.empty(2**20, device="cuda"), [], "cuda")
    assert [live for _, live in timeline] == [0, 4 * 2**20, 0]
