"""compress="auto" over ranks: the link and the kernels are measured, and all ranks choose alike."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import torch.distributed as dist

from graphopt.compression.bucket import Shape
from graphopt.compression.choose import Auto, ChosenMethods, MethodPrice, MethodPrices, choose
from graphopt.compression.kernel_seconds import KernelCost, kernel_cost
from graphopt.compression.link import Link, highest, link_of
from graphopt.compression.methods import Compression
from graphopt.compression.protocols import wire_bytes
from graphopt.device.messages import device_of
from graphopt.device.ranks import Ranks
from graphopt.device.timing import plain_execution


@dataclass
class _Measured:
    """What one group was found to cost, so that it is measured once."""

    link: Link
    kernels: dict[Compression, KernelCost]


_measured: weakref.WeakKeyDictionary[dist.ProcessGroup, _Measured] = weakref.WeakKeyDictionary()


def choose_methods(
    ranks: Ranks,
    auto: Auto,
    buckets: Sequence[Sequence[Shape]],
    backward_seconds: float = 0.0,
    *,
    step_seconds: float = 0.0,
) -> ChosenMethods:
    """A method for each bucket of gradients of these shapes, in the order in which the backward completes them.

    A collective call, about a second long the first time: all ranks name the same buckets and get the same choice.
    `backward_seconds` is an estimate of the backward that the buckets can overlap with, `step_seconds` of a whole step
    with uncompressed gradients: what is gained is judged by it, where it is longer than the backward and the messages.
    """
    device = device_of(ranks)
    with plain_execution(device):  # a capture may be under way, whose tensors are fake
        measured = _measure(ranks, auto, device)
        backward, step = highest(ranks, [backward_seconds, step_seconds], device)
    prices = [_prices(ranks, auto, shapes, measured) for shapes in buckets]
    choice = choose(auto, prices, _ready(buckets, backward), step)
    return replace(choice, reasons=(f"{ranks.world} ranks, {measured.link}", *choice.reasons))


def _measure(ranks: Ranks, auto: Auto, device: torch.device) -> _Measured:
    if ranks.group not in _measured:
        _measured[ranks.group] = _Measured(link_of(ranks, device), {})
    measured = _measured[ranks.group]
    new = [method for method in auto.candidates if method not in measured.kernels]
    costs = [kernel_cost(method, ranks.world, ranks.backend, device) for method in new]
    slowest = highest(ranks, [cost.seconds_per_element for cost in costs], device)
    for method, cost, seconds in zip(new, costs, slowest, strict=True):
        measured.kernels[method] = KernelCost(seconds, cost.messages)
    return measured


def _prices(ranks: Ranks, auto: Auto, shapes: Sequence[Shape], measured: _Measured) -> MethodPrices:
    elements = sum(map(math.prod, shapes))

    def wire_seconds(method: Compression | None, messages: int) -> float:
        return measured.link.seconds(wire_bytes(method, shapes, ranks.world, ranks.backend), messages)

    # whoever sends gradients as they are packs some of them too: left out, so that a doubt speaks for no compression
    prices: dict[Compression | None, MethodPrice] = {None: MethodPrice(0.0, wire_seconds(None, 1))}
    for method in auto.candidates:
        cost = measured.kernels[method]
        prices[method] = MethodPrice(elements * cost.seconds_per_element, wire_seconds(method, cost.messages))
    return prices


def _ready(buckets: Sequence[Sequence[Shape]], backward_seconds: float) -> list[float]:
    """When each bucket is complete, if the backward takes as long for each element."""
    elements = list(accumulate(sum(map(math.prod, shapes)) for shapes in buckets))
    return [backward_seconds * here / elements[-1] for here in elements]
