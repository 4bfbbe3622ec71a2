"""compress="auto" over real processes: measured once, alike on all ranks, refused where the backward hides it."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.compression import network
from graphopt.compression import measured_choice as auto_module
from graphopt.compression.choose import Auto, ChosenMethods
from graphopt.compression.kernel_seconds import kernel_cost
from graphopt.compression.link import measure_link
from graphopt.compression.measured_choice import choose_methods
from graphopt.compression.methods import DGC, QSGD, Compression, EightBit, HalfCast, PowerSGD, Threshold, TopK
from graphopt.device.ranks import ranks_of
from tests.support.ranks import run_ranks

needs_namespaces = pytest.mark.skipif(bool(network.missing()), reason=network.missing())
BUCKETS = (((1024, 1024), (1024,)),) * 4


def _link() -> tuple[float, float, float]:
    ranks = ranks_of()
    assert ranks is not None
    start = time.perf_counter()
    link = measure_link(ranks, torch.device("cpu"))
    return link.bytes_per_second, link.latency_seconds, time.perf_counter() - start


def _choices() -> tuple[ChosenMethods, ChosenMethods, int]:
    """With kernels that cost nothing beside the network, and with a backward that hides it; groups measured."""
    ranks = ranks_of()
    assert ranks is not None
    at_once = choose_methods(ranks, Auto((EightBit(), TopK(0.01))), BUCKETS)
    hidden = choose_methods(ranks, Auto((EightBit(),)), BUCKETS, backward_seconds=100.0 * ranks.rank)
    return at_once, hidden, len(auto_module._measured)


@needs_namespaces
@pytest.mark.parametrize("world", [2, 4])
def test_the_link_is_found_as_fast_as_it_was_made(world: int) -> None:
    found = network.run_ranks_over_network(world, "100mbit", _link)
    assert len({(bandwidth, latency) for bandwidth, latency, _ in found}) == 1
    bandwidth, latency, seconds = found[0]
    assert 0.6 * 12.5e6 < bandwidth < 1.1 * 12.5e6
    assert latency < 0.05 and seconds < 5


@needs_namespaces
def test_ranks_choose_alike_and_only_what_the_backward_does_not_hide() -> None:
    (at_once, hidden, measured), *others = network.run_ranks_over_network(2, "100mbit", _choices)
    assert all(other == (at_once, hidden, measured) for other in others)
    assert set(at_once.methods) == {TopK(0.01)}
    # of 100 seconds, on one rank: all but the last bucket have long arrived when the backward ends
    assert hidden.methods == (None,) * 4
    assert measured == 1
    assert "2 ranks" in at_once.reasons[0] and "TopK(ratio=0.01): 4 of 4 buckets" in at_once.reasons[-1]


def test_a_machine_of_its_own_is_measured_in_no_time() -> None:
    assert all(seconds < 5 for *_, seconds in run_ranks(2, _link))


@pytest.mark.parametrize(
    "method",
    [HalfCast(), HalfCast(torch.bfloat16), EightBit(), QSGD(), TopK(), DGC(), Threshold(1.0), PowerSGD()],
    ids=repr,
)
@pytest.mark.parametrize("world", [2, 4])
def test_every_method_has_a_price(method: Compression, world: int) -> None:
    cost = kernel_cost(method, world, "gloo", torch.device("cpu"))
    # between nothing and a microsecond an element
    assert 0 < cost.seconds_per_element < 1e-6
    assert cost.messages in (1, 2)
