"""Protocols, all ranks in one process: what comes out, what is kept back, what is sent."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from graphopt.compression.bucket import Agree, AllGather, AllReduce, Bucket, Protocol
from graphopt.compression.methods import DGC, QSGD, Compression, EightBit, HalfCast, PowerSGD, Threshold, TopK
from graphopt.compression.protocols import (
    SMALLEST_ELEMENTS,
    at_step,
    compressible,
    message_bytes,
    protocol_of,
    state_shapes,
    wire_bytes,
)
from tests.support.lockstep import RankOfMany, start, step
from tests.support.tensors import clones, same_bits

METHODS: tuple[Compression, ...] = (
    HalfCast(),
    HalfCast(torch.bfloat16),
    EightBit(),
    QSGD(),
    QSGD(bits=2),
    TopK(0.05),
    Threshold(1.0),
    DGC(0.05),
    PowerSGD(2),
)
WITH_FEEDBACK = tuple(m for m in METHODS if isinstance(m, EightBit | TopK | Threshold | PowerSGD))
SHAPES = {"wide": (48, 129), "kernel": (40, 8, 3, 3), "tall": (300, 11)}
WORLDS = (2, 3, 4)


def shares_of(world: int, seed: int = 0, scale: float = 1.0) -> list[dict[str, Tensor]]:
    """One normal gradient a parameter and rank, one of them channels_last."""
    generator = torch.Generator().manual_seed(seed)
    ranks = []
    for _ in range(world):
        share = {name: torch.randn(shape, generator=generator) * scale / world for name, shape in SHAPES.items()}
        share["kernel"] = share["kernel"].contiguous(memory_format=torch.channels_last)
        ranks.append(share)
    return ranks


def summed(shares: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([share[name].double() for share in shares]).sum(0) for name in shares[0]}


def kept_back(ranks: list[RankOfMany]) -> dict[str, Tensor]:
    return {name: torch.stack([rank.state[name]["residual"].double() for rank in ranks]).sum(0) for name in SHAPES}


def bits_of(rank: RankOfMany) -> list[Tensor]:
    return clones([tensor for kept in rank.state.values() for tensor in kept.values()])


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_all_ranks_come_to_the_same_bits(method: Compression, world: int) -> None:
    ranks = start(method, shares_of(1)[0], world)
    for index in range(2):
        step(method, ranks, shares_of(world, seed=index), draw=index)
    first, *others = ranks
    assert all(same_bits(list(first.gradients.values()), list(other.gradients.values())) for other in others)
    assert all(tensor.isfinite().all() and tensor.count_nonzero() for tensor in first.gradients.values())


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("method", WITH_FEEDBACK, ids=str)
def test_nothing_is_lost(method: Compression, world: int) -> None:
    """Sent so far and kept back add up to all gradients so far, to a few ulps of what is added up."""
    ranks, wanted, sent = start(method, shares_of(1)[0], world), None, None
    for index in range(3):
        shares = shares_of(world, seed=index, scale=4.0)
        step(method, ranks, shares, scale=4.0)
        wanted = _plus(wanted, summed(shares), 1 / 4)
        sent = _plus(sent, {name: gradient.double() for name, gradient in ranks[0].gradients.items()}, 1 / 4)
    assert wanted is not None and sent is not None
    kept = kept_back(ranks)
    for name in SHAPES:
        assert (sent[name] + kept[name] - wanted[name]).abs().max() <= 16 * 2**-23 * wanted[name].abs().max()


def _plus(total: dict[str, Tensor] | None, more: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {name: tensor * factor + (0 if total is None else total[name]) for name, tensor in more.items()}


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_state_is_in_true_units(method: Compression) -> None:
    """A loss scale, and another one in the next step, change nothing but the gradients' own scale."""
    plain, scaled = (start(method, shares_of(1)[0], 2) for _ in range(2))
    for index, scale in enumerate((8.0, 4.0)):
        step(method, plain, shares_of(2, seed=index), draw=index)
        step(method, scaled, shares_of(2, seed=index, scale=scale), scale=scale, draw=index)
    assert same_bits(bits_of(plain[0]), bits_of(scaled[0]))
    assert same_bits([g * 4.0 for g in plain[0].gradients.values()], list(scaled[0].gradients.values()))


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("world", (2, 3))
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_one_bad_number_on_one_rank_leaves_state_as_it_was(method: Compression, world: int, value: float) -> None:
    ranks = start(method, shares_of(1)[0], world)
    unharmed = start(method, shares_of(1)[0], world)
    for index in range(3):
        shares = shares_of(world, seed=index)
        if index == 1:
            before = [bits_of(rank) for rank in ranks]
            shares[1]["kernel"][3, 2, 1, 0] = value
            step(method, ranks, shares, draw=index)
            assert all(rank.overflow != 0 for rank in ranks)
            assert all(same_bits(then, bits_of(rank)) for then, rank in zip(before, ranks, strict=True))
            continue
        step(method, ranks, shares, draw=index)
        step(method, unharmed, shares, draw=index)
        assert all(rank.overflow == 0 for rank in ranks)
    assert same_bits(list(ranks[0].gradients.values()), list(unharmed[0].gradients.values()))
    assert same_bits(bits_of(ranks[1]), bits_of(unharmed[1]))


def test_a_half_sum_that_overflows_is_agreed_on() -> None:
    """No rank's share is infinite in fp16 by itself."""
    ranks = start(HalfCast(), shares_of(1)[0], 2)
    shares = [{name: torch.full(shape, 40000.0) for name, shape in SHAPES.items()} for _ in range(2)]
    step(HalfCast(), ranks, shares)
    assert [rank.overflow for rank in ranks] == [1.0, 1.0]


def test_bf16_is_summed_in_fp32() -> None:
    """Of 1 + 2^-8 + 2^-8 bf16 keeps nothing of what comes after the 1 if it rounds every sum."""
    ranks = start(HalfCast(torch.bfloat16), {}, 3)
    values = (1.0, 2**-8, 2**-8)
    shares = [{name: torch.full(shape, value) for name, shape in SHAPES.items()} for value in values]
    for rank in ranks:
        rank.state = {name: {} for name in SHAPES}
    step(HalfCast(torch.bfloat16), ranks, shares)
    assert all((gradient == 1 + 2**-7).all() for gradient in ranks[2].gradients.values())


@pytest.mark.parametrize("world", WORLDS)
def test_a_threshold_is_of_a_ranks_own_gradient(world: int) -> None:
    """Which is `world` times its share of the mean."""
    gradients = [{name: gradient * world for name, gradient in share.items()} for share in shares_of(world)]
    ranks, method = start(Threshold(2.0, capacity=1.0), gradients[0], world), Threshold(2.0, capacity=1.0)
    step(method, ranks, shares_of(world))
    for rank, gradient in zip(ranks, gradients, strict=True):
        for name, own in gradient.items():
            assert torch.equal(rank.state[name]["residual"] != 0, (own.abs() < 2.0) & (own != 0))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("method", (None, *METHODS), ids=str)
def test_bytes_are_what_is_said(method: Compression | None, world: int) -> None:
    ranks = start(method, shares_of(1)[0], world)
    if method is not None:
        step(method, ranks, shares_of(world))
    shapes = list(SHAPES.values())
    elements, biases = sum(map(math.prod, shapes)), [(10,), ()]
    whole = 4 * 11 * 2 * (world - 1) // world
    uncompressed = 4 * elements * 2 * (world - 1) // world
    if method is not None and compressible(method, biases[0]):
        assert wire_bytes(method, shapes, world) == ranks[0].sent_bytes
    elif method is not None:
        assert wire_bytes(method, [*shapes, *biases], world) == ranks[0].sent_bytes + whole
    assert wire_bytes(None, shapes, world) == uncompressed
    assert wire_bytes(method, shapes, world) <= uncompressed


def test_a_hundredth_of_25_million_is_a_megabyte_and_a_half() -> None:
    assert wire_bytes(TopK(0.01), [(5000, 5000)], 2) == pytest.approx(1.5e6, rel=0.02)
    assert wire_bytes(EightBit(), [(5000, 5000)], 2) == pytest.approx(25e6, rel=0.02)
    assert wire_bytes(EightBit(), [(5000, 5000)], 4) == pytest.approx(1.5 * 25e6, rel=0.02)
    assert wire_bytes(QSGD(bits=4), [(5000, 5000)], 2) == pytest.approx(12.5e6, rel=0.02)
    assert wire_bytes(PowerSGD(1), [(5000, 5000)], 2) == 4 * 10000


def test_rings_send_each_byte_so_often() -> None:
    tensor = torch.empty(100)
    assert message_bytes(AllReduce(tensor), 4) == 600
    assert message_bytes(AllGather(tensor), 4) == 1200
    assert message_bytes(Agree(), 4) == 0


def test_small_and_thin_parameters_travel_whole() -> None:
    assert not compressible(TopK(), (SMALLEST_ELEMENTS - 1,))
    assert compressible(TopK(), (SMALLEST_ELEMENTS,))
    assert compressible(HalfCast(), ())
    assert not compressible(PowerSGD(), (SMALLEST_ELEMENTS,))
    assert not compressible(PowerSGD(rank=8), (1024, 16))
    assert compressible(PowerSGD(rank=1), (1024, 16))
    assert not compressible(None, (10000,))
    assert state_shapes(TopK(), (10,)) == {}
    assert state_shapes(PowerSGD(4), (64, 16, 3, 3)) == {"residual": (64, 16, 3, 3), "query": (144, 4)}


def test_warm_up_is_a_method_of_its_own_at_each_stage() -> None:
    method = DGC(ratio=0.01, warmup_steps=8)
    ratios = [at_step(method, index) for index in range(10)]
    assert len({repr(one) for one in ratios}) == 5
    assert ratios[0] == DGC(ratio=0.25) and ratios[8] == ratios[9] == DGC(ratio=0.01)
    assert at_step(TopK(), 3) == TopK()


@pytest.mark.parametrize("world", (2, 3))
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_graph_of_it_does_the_same(method: Compression, world: int) -> None:
    """Recorded on proxies, with what the network gives as inputs, and run: the bits of running it on tensors."""
    share = shares_of(1, seed=5)[0]
    recorded, direct = _fresh(method, share), _fresh(method, share)
    sent, received = _run_alone(protocol_of(method)(_bucket(*direct, world)), world)
    module = _recorded(method, direct[1], world, len(received))
    messages = module(*recorded[0], *_flat(recorded[1]), torch.zeros(()), *received)
    assert same_bits(list(messages), sent)
    assert same_bits(recorded[0], direct[0])
    assert same_bits(_flat(recorded[1]), _flat(direct[1]))


Kept = dict[str, list[Any]]


def _fresh(method: Compression, share: dict[str, Tensor]) -> tuple[list[Tensor], Kept]:
    kept = [start(method, share, 1)[0].state[name] for name in SHAPES]
    return clones(list(share.values())), {key: [one[key] for one in kept] for key in kept[0]}


def _flat(state: Kept) -> list[Any]:
    return [tensor for tensors in state.values() for tensor in tensors]


def _bucket(gradients: list[Any], state: Kept, world: int, overflow: Any = None) -> Bucket:
    flag = torch.zeros(()) if overflow is None else overflow
    return Bucket(tuple(SHAPES.values()), gradients, flag, 1, world, "gloo", state, draw=3)


def _run_alone(protocol: Protocol, world: int) -> tuple[list[Tensor], list[Tensor]]:
    """What it sends, and what it gets where all ranks send the same; but sums are its own message."""
    sent, received, got = [], [], None
    while not isinstance(request := protocol.send(got), Agree):
        sent.append(request.tensor.clone())
        received.append(request.tensor.repeat(world) if isinstance(request, AllGather) else request.tensor.clone())
        got = received[-1].clone()
    assert next(protocol, None) is None
    return sent, received


def _recorded(method: Compression, keys: Iterable[str], world: int, answers: int) -> fx.GraphModule:
    """(gradients, state, overflow, what is received) -> what is sent."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)

    def given(name: str) -> fx.Proxy:
        return fx.Proxy(graph.placeholder(name), tracer)

    gradients = [given(name) for name in SHAPES]
    state = {key: [given(f"{name}_{key}") for name in SHAPES] for key in keys}
    overflow = given("overflow")
    received = [given(f"received_{index}") for index in range(answers)]
    protocol, sent = protocol_of(method)(_bucket(gradients, state, world, overflow)), []
    for answer in (None, *received):
        request = protocol.send(answer)
        if not isinstance(request, Agree):
            sent.append(request.tensor.node)
    assert next(protocol, None) is None
    graph.output(sent)
    return fx.GraphModule(torch.nn.Module(), graph)
