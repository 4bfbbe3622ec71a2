"""Protocols of all ranks run in one process, message by message: what processes must come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphopt.compression.bucket import Agree, AllGather, AllReduce, Bucket, Message, Protocol
from graphopt.compression.methods import Compression
from graphopt.compression.protocols import compressible, message_bytes, protocol_of
from graphopt.compression.residuals import KeptState, initial_state


@dataclass
class RankOfMany:
    """One rank's state, and the gradients (summed over ranks) and flag that its last step came to."""

    state: KeptState
    gradients: dict[str, Tensor]
    overflow: float = 0.0
    sent_bytes: int = 0


def start(method: Compression | None, like: dict[str, Tensor], world: int) -> list[RankOfMany]:
    """Ranks before their first step."""
    return [RankOfMany({n: initial_state(method, n, t) for n, t in like.items()}, {}) for _ in range(world)]


def step(
    method: Compression | None,
    ranks: Sequence[RankOfMany],
    shares: Sequence[dict[str, Tensor]],
    scale: float = 1.0,
    draw: int = 0,
    inverse_scale: float | None = None,
) -> None:
    """One step of all parameters in one bucket; `shares` (times `scale`) of each rank are left as they are."""
    names = [name for name in shares[0] if compressible(method, tuple(shares[0][name].shape))]
    protocols, flags = [], []
    for number, (rank, share) in enumerate(zip(ranks, shares, strict=True)):
        rank.gradients = {name: share[name].clone() for name in names}
        rank.sent_bytes = 0
        flags.append(torch.zeros(()))
        keys = rank.state[names[0]]
        bucket = Bucket(
            shapes=tuple(tuple(share[name].shape) for name in names),
            gradients=list(rank.gradients.values()),
            overflow=flags[-1],
            rank=number,
            world=len(ranks),
            backend="gloo",
            state={key: [rank.state[name][key] for name in names] for key in keys},
            inverse_scale=torch.tensor(1 / scale if inverse_scale is None else inverse_scale),
            scale=torch.tensor(scale),
            draw=draw,
        )
        protocols.append(protocol_of(method)(bucket))
    _run(protocols, flags, ranks)
    for rank, flag in zip(ranks, flags, strict=True):
        rank.overflow = float(flag)


def _run(protocols: list[Protocol], flags: list[Tensor], ranks: Sequence[RankOfMany]) -> None:
    results: list[Tensor | None] = [None] * len(protocols)
    while True:
        requests = [protocol.send(got) for protocol, got in zip(protocols, results, strict=True)]
        for rank, request in zip(ranks, requests, strict=True):
            rank.sent_bytes += message_bytes(request, len(ranks))
        if isinstance(requests[0], Agree):
            break
        results = list(exchanged(requests))
    agreed = torch.stack(flags).max()
    for flag, protocol in zip(flags, protocols, strict=True):
        flag.copy_(agreed)
        assert next(protocol, None) is None


def exchanged(requests: Sequence[Message | Agree]) -> list[Tensor]:
    """What each rank gets; sums in rank order."""
    tensors = [request.tensor for request in requests if not isinstance(request, Agree)]
    world = len(requests)
    if isinstance(requests[0], AllReduce):
        total = tensors[0].clone()
        for tensor in tensors[1:]:
            total += tensor
        return [total.clone() for _ in tensors]
    if isinstance(requests[0], AllGather):
        return [torch.cat(tensors) for _ in tensors]
    parts = [tensor.chunk(world) for tensor in tensors]
    return [torch.cat([of_rank[rank] for of_rank in parts]) for rank in range(world)]
