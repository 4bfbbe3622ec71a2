"""The scheduler of protocols: those of several buckets side by side, messages in an order that all ranks have alike.

How a message is sent and its result waited for is the caller's: DDP's hook does it, on tensors; the `compress` pass
writes it into a graph, on fx proxies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graphopt.compression.bucket import Agree, Message, Protocol, TensorLike


@dataclass
class _Running:
    """A protocol on its way, what it said last, and what will be its answer; `agrees` where nothing is left to say."""

    protocol: Protocol
    message: Message | None = None
    answer: TensorLike | None = None
    agrees: bool = False


class Interleaved:
    """The buckets of one step.

    A bucket's first message leaves when it starts; only then are the buckets before it taken one message further.
    So the network has work while the next bucket is compressed, and what is sent when depends on no clock.

    `begin` sends a message and gives what `finish` turns into its answer right before the protocol goes on with it.
    """

    def __init__(self, begin: Callable[[Message], TensorLike], finish: Callable[[TensorLike], TensorLike]) -> None:
        self._begin, self._finish = begin, finish
        self._running: list[_Running] = []

    def start(self, protocol: Protocol) -> None:
        """Send a bucket's first message, then the next one of each bucket before it."""
        earlier = list(self._running)
        self._running.append(_Running(protocol))
        for running in (self._running[-1], *earlier):
            self._advance(running)

    def finish(self, agree: Callable[[], None]) -> None:
        """Run all to their ends; when nothing is left to send, `agree` makes their `overflow` alike on all ranks."""
        while any(not running.agrees for running in self._running):
            for running in self._running:
                self._advance(running)
        agree()
        for running in self._running:
            assert next(running.protocol, None) is None, "a protocol sends nothing after it agreed"
        self._running.clear()

    def _advance(self, running: _Running) -> None:
        """Take one to its next message, which is kept, as its memory must live until it was sent."""
        if running.agrees:
            return
        answer = None if running.message is None else self._finish(running.answer)
        said = running.protocol.send(answer)
        if isinstance(said, Agree):
            running.message, running.answer, running.agrees = None, None, True
        else:
            running.message, running.answer = said, self._begin(said)
