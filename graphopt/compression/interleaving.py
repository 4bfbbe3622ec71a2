"""Protocols of several buckets run side by side, their requests in an order that is the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphopt.compression.bucket import Agree, AllGather, AllReduce, Protocol, Request
from graphopt.compression.protocols import request_bytes
from graphopt.device.ranks import Ranks

# the collectives that the graph pass puts into graphs, so that both ways give the same bits
_ops = torch.ops._c10d_functional


def begun(request: Request, ranks: Ranks) -> Tensor:
    """What the ranks make of a request, to be passed through `finished` before it is read."""
    assert not isinstance(request, Agree)
    message: Tensor = request.tensor
    result: Tensor
    if isinstance(request, AllReduce):
        result = _ops.all_reduce_(message, "sum", ranks.name)
    elif isinstance(request, AllGather):
        result = _ops.all_gather_into_tensor(message, ranks.world, ranks.name)
    else:
        part = [message.numel() // ranks.world] * ranks.world
        result = _ops.all_to_all_single(message, part, part, ranks.name)
    return result


def finished(result: Tensor) -> Tensor:
    """Wait for it."""
    waited: Tensor = _ops.wait_tensor(result)
    return waited


@dataclass
class _Running:
    protocol: Protocol
    message: Tensor | None = None
    result: Tensor | None = None
    agrees: bool = False


class Interleaved:
    """The buckets of one step.

    A bucket's first message leaves when it starts; only then are the buckets before it taken one message further.
    So the network has work while the next bucket is compressed, and what is sent when depends on no clock.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.sent_bytes = 0
        self._ranks = ranks
        self._running: list[_Running] = []

    def start(self, protocol: Protocol) -> None:
        earlier = list(self._running)
        self._running.append(_Running(protocol))
        self._advance(self._running[-1])
        for running in earlier:
            self._advance(running)

    def finish(self, overflow: Tensor) -> None:
        """Run all to their ends; between, `overflow` becomes the maximum over ranks."""
        while any(not running.agrees for running in self._running):
            for running in self._running:
                self._advance(running)
        finished(_ops.all_reduce_(overflow, "max", self._ranks.name))
        for running in self._running:
            assert next(running.protocol, None) is None, "a protocol sends nothing after it agreed"
        self._running.clear()

    def _advance(self, running: _Running) -> None:
        """Take one to its next request."""
        if running.agrees:
            return
        got = None if running.result is None else finished(running.result)
        request = running.protocol.send(got)
        if isinstance(request, Agree):
            running.message, running.result, running.agrees = None, None, True
            return
        self.sent_bytes += request_bytes(request, self._ranks.world)
        # the message must live until it was sent
        running.message, running.result = request.tensor, begun(request, self._ranks)
