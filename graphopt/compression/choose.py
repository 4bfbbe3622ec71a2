"""compress="auto": which method each bucket travels with, from the prices of the network and of the kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from graphopt.base.errors import UsageError
from graphopt.compression.methods import DGC, Compression, EightBit, HalfCast

#: A method is taken only where the step becomes shorter by at least this part: predictions are not better than that.
LEAST_GAIN = 0.1


@dataclass(frozen=True)
class Auto:
    """A method for each bucket from `candidates`, or none where it would lose; "auto" stands for `Auto()`.

    Candidates stand in the order of trust: a later one replaces an earlier one, and the first one uncompressed
    gradients, only where the step becomes at least 10 % shorter. By default only methods that send every element at
    every step may be picked; name sparse or low-rank ones (TopK, PowerSGD) where training was seen to bear them.
    fp16 is none of them: what lies below its 6e-8 would be lost for good.
    """

    candidates: tuple[Compression, ...] = (HalfCast(torch.bfloat16), EightBit())

    def __post_init__(self) -> None:
        if not self.candidates:
            raise UsageError("Auto: candidates must name at least one method")
        if any(isinstance(method, DGC) for method in self.candidates):
            raise UsageError("Auto: DGC takes the optimizer's place in momentum, for all gradients or none; name TopK")


@dataclass(frozen=True)
class MethodPrice:
    """Of one bucket: seconds that its kernels take from the backward, and seconds that it holds the network."""

    kernel_seconds: float
    wire_seconds: float


@dataclass(frozen=True)
class ChosenMethods:
    """One method a bucket, None where it travels uncompressed, and why, as lines of a report."""

    methods: tuple[Compression | None, ...]
    reasons: tuple[str, ...]


#: What each method, and None, costs a bucket.
MethodPrices = Mapping[Compression | None, MethodPrice]


def step_seconds(
    methods: Sequence[Compression | None], prices: Sequence[MethodPrices], ready_seconds: Sequence[float]
) -> float:
    """From the backward's start until every bucket has arrived.

    Bucket i could be compressed `ready_seconds[i]` after the start if nothing was compressed before it; kernels
    delay the backward behind them, and the network carries one bucket after the other.
    """
    behind, network = 0.0, 0.0
    for method, its_prices, ready in zip(methods, prices, ready_seconds, strict=True):
        behind += its_prices[method].kernel_seconds
        network = max(network, ready + behind) + its_prices[method].wire_seconds
    return max(network, ready_seconds[-1] + behind) if ready_seconds else 0.0


def choose(
    auto: Auto, prices: Sequence[MethodPrices], ready_seconds: Sequence[float], whole_seconds: float = 0.0
) -> ChosenMethods:
    """The shortest step that the candidates' order of trust allows.

    `whole_seconds` is what a step takes uncompressed, with all that is not in `step_seconds`, where that is known.
    """
    chosen: list[Compression | None] = [None] * len(prices)
    uncompressed = step_seconds(chosen, prices, ready_seconds)
    besides = max(whole_seconds - uncompressed, 0.0)
    reasons = [f"uncompressed: {_milliseconds(uncompressed)} from the backward's start to the last gradient's arrival"]
    if besides:
        reasons.append(f"the rest of a step: {_milliseconds(besides)}")
    for method in auto.candidates:
        before = step_seconds(chosen, prices, ready_seconds)
        tried = _improved(chosen, method, prices, ready_seconds)
        after = step_seconds(tried, prices, ready_seconds)
        everywhere = step_seconds([method] * len(prices), prices, ready_seconds)
        if besides + after < (besides + before) * (1 - LEAST_GAIN):
            chosen = tried
            reasons.append(f"{method}: {tried.count(method)} of {len(tried)} buckets, {_milliseconds(after)}")
        else:
            reasons.append(
                f"{method}: not taken: {_milliseconds(everywhere)} for all buckets, {_milliseconds(after)} at best, "
                f"and less than {LEAST_GAIN:.0%} of the step would be gained over {_milliseconds(before)}"
            )
    return ChosenMethods(tuple(chosen), tuple(reasons))


def _improved(
    chosen: Sequence[Compression | None],
    method: Compression,
    prices: Sequence[MethodPrices],
    ready_seconds: Sequence[float],
) -> list[Compression | None]:
    """Each bucket as it is or with `method`, so that the step is shortest, to a few thousandths.

    Bucket by bucket all ways are followed that may still win: of those whose kernels delay the backward as long, to a
    thousandth of the step, the one that leaves the network soonest.
    """
    grain = max(step_seconds(chosen, prices, ready_seconds), 1e-9) / 1000
    ways: list[_Way] = [_Way(0.0, 0.0, ())]
    for as_is, its_prices, ready in zip(chosen, prices, ready_seconds, strict=True):
        best: dict[int, _Way] = {}
        for way, how in product(ways, dict.fromkeys((as_is, method))):
            behind = way.behind + its_prices[how].kernel_seconds
            network = max(way.network, ready + behind) + its_prices[how].wire_seconds
            key = round(behind / grain)
            if key not in best or network < best[key].network:
                best[key] = _Way(behind, network, (*way.methods, how))
        ways = _undominated(best[key] for key in sorted(best))
    last_ready = ready_seconds[-1] if ready_seconds else 0.0
    return list(min(ways, key=lambda way: max(way.network, last_ready + way.behind)).methods)


@dataclass(frozen=True)
class _Way:
    """Methods of the first buckets, how long they delay the backward, and when they leave the network."""

    behind: float
    network: float
    methods: tuple[Compression | None, ...]


def _undominated(ways: Iterable[_Way]) -> list[_Way]:
    """Of ways that delay the backward longer and longer, those that leave the network sooner and sooner."""
    kept: list[_Way] = []
    for way in ways:
        if not kept or way.network < kept[-1].network:
            kept.append(way)
    return kept


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"
