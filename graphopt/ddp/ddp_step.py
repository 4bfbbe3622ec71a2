"""One step's buckets of DDP through the protocols."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graphopt.compression import plain
from graphopt.compression.bucket import Bucket, Protocol, Shape
from graphopt.compression.collectives import Sender
from graphopt.compression.interleaving import Interleaved
from graphopt.compression.local_clip import clip_locally
from graphopt.compression.methods import DGC, Compression, HalfCast
from graphopt.compression.protocols import at_step, protocol_of, state_shapes, travels_by
from graphopt.compression.residuals import KeptState, initial_state
from graphopt.device.ranks import Ranks

#: Parameters too small to be compressed wait for each other, over buckets, until a message is worth its latency.
_MESSAGE_BYTES = 2**20


@dataclass(frozen=True)
class Arrival:
    """A bucket as DDP hands it over, `at_seconds` of the clock: a flat buffer, a view of it for each named gradient."""

    names: tuple[str, ...]
    buffer: Tensor
    gradients: list[Tensor]
    is_last: bool
    at_seconds: float

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The gradients' shapes, in order."""
        return tuple(tuple(gradient.shape) for gradient in self.gradients)


@dataclass
class DdpStep:
    """One step: `add` each bucket in DDP's order, `finish` after the last.

    `method_of` says how the bucket of these names travels, `scale` is the loss scale, `index` counts steps. Where it
    `gives_back`, gradients that travel whole take with them what was kept back of them.
    """

    ranks: Ranks
    method_of: Callable[[tuple[str, ...]], Compression | None]
    state: KeptState
    scale: float
    index: int
    gives_back: bool = False
    arrivals: list[Arrival] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sender = Sender(self.ranks)
        self._interleaved = Interleaved(self._sender.begin, self._sender.finish)
        self._computed: list[_Computed] = []
        self._unclipped: list[int] = []
        self._small: dict[Compression | None, dict[str, Tensor]] = {}
        self._given_back: list[str] = []

    @property
    def sent_bytes(self) -> int:
        """Bytes that this rank has sent in the step so far."""
        return self._sender.sent_bytes

    def backward_seconds(self) -> float:
        """About how long the backward took, from when its buckets were ready; 0 with one bucket."""
        elements = [arrival.buffer.numel() for arrival in self.arrivals]
        after_the_first = 1 - elements[0] / sum(elements)
        seconds = self.arrivals[-1].at_seconds - self.arrivals[0].at_seconds
        return seconds / after_the_first if after_the_first else 0.0

    def add(self, arrival: Arrival) -> None:
        """Take a bucket in, and send of it what can be sent before the others are there."""
        if not self.arrivals:
            device = arrival.buffer.device
            self._overflow = torch.zeros((), device=device)
            self._scale = None if self.scale == 1 else torch.tensor(self.scale, device=device)
            self._inverse_scale = torch.tensor(1 / (self.scale * self.ranks.world), device=device)
        self.arrivals.append(arrival)
        self._computed.append(_in_float32(arrival))
        method = self._method(arrival)
        if isinstance(method, DGC) and method.max_norm is not None:
            self._unclipped.append(len(self.arrivals) - 1)
        else:
            self._start(len(self.arrivals) - 1)

    def finish(self) -> None:
        """The mean over ranks is in the buffers; NaN on all ranks where the gradient of one was not finite."""
        self._clip()
        for index in self._unclipped:
            self._start(index)
        self._start_small()
        self._interleaved.finish(lambda: self._sender.agree(self._overflow))
        is_finite = self._overflow.item() == 0
        for arrival, computed in zip(self.arrivals, self._computed, strict=True):
            if not is_finite:
                arrival.buffer.fill_(math.nan)
            elif computed.flat is not arrival.buffer:
                arrival.buffer.copy_(computed.flat)
        for name in self._given_back if is_finite else ():
            del self.state[name]

    def _method(self, arrival: Arrival) -> Compression | None:
        return at_step(self.method_of(arrival.names), self.index)

    def _clip(self) -> None:
        """DGC's local clipping, for which the norm of all of this rank's gradients must be known."""
        if not self._unclipped:
            return
        method = self._method(self.arrivals[self._unclipped[0]])
        assert isinstance(method, DGC) and method.max_norm is not None
        gradients = [gradient for index in self._unclipped for gradient in self._computed[index].gradients]
        clip_locally(gradients, method.max_norm, self.ranks.world, self._inverse_scale)

    def _start(self, index: int) -> None:
        arrival, computed = self.arrivals[index], self._computed[index]
        method = self._method(arrival)
        if method is None and self.gives_back:
            self._give_back(arrival.names, computed.gradients)
        if method is None or isinstance(method, HalfCast):
            self._start_as_is(protocol_of(method) if method else plain.whole, [computed.flat])
            return
        large: dict[str, Tensor] = {}
        for name, gradient in zip(arrival.names, computed.gradients, strict=True):
            how = travels_by(method, tuple(gradient.shape))
            (large if how == method else self._small.setdefault(how, {}))[name] = gradient
        if large:
            self._start_compressed(method, large)
        if sum(gradient.nbytes for some in self._small.values() for gradient in some.values()) >= _MESSAGE_BYTES:
            self._start_small()

    def _give_back(self, names: Sequence[str], gradients: Sequence[Tensor]) -> None:
        for name, gradient in zip(names, gradients, strict=True):
            if "residual" in self.state.get(name, {}):
                gradient.add_(self.state[name]["residual"], alpha=self.scale * self.ranks.world)
                self._given_back.append(name)

    def _start_small(self) -> None:
        for how, gradients in self._small.items():
            if how is None:
                self._start_as_is(plain.packed(torch.float32), list(gradients.values()))
            else:
                self._start_compressed(how, gradients)
        self._small = {}

    def _start_as_is(self, protocol: Callable[[Bucket], Protocol], gradients: list[Tensor]) -> None:
        """With their loss scale, and no state."""
        torch._foreach_div_(gradients, self.ranks.world)
        self._interleaved.start(protocol(self._bucket(gradients, {})))

    def _start_compressed(self, method: Compression, gradients: dict[str, Tensor]) -> None:
        state: dict[str, list[Tensor]] = {}
        for name, gradient in gradients.items():
            for key, tensor in self._kept(method, name, gradient).items():
                state.setdefault(key, []).append(tensor)
        self._interleaved.start(protocol_of(method)(self._bucket(list(gradients.values()), state)))

    def _bucket(self, gradients: list[Tensor], state: dict[str, list[Tensor]]) -> Bucket:
        return Bucket(
            shapes=tuple(tuple(gradient.shape) for gradient in gradients),
            gradients=gradients,
            overflow=self._overflow,
            rank=self.ranks.rank,
            world=self.ranks.world,
            backend=self.ranks.backend,
            state=state,
            inverse_scale=self._inverse_scale,
            scale=self._scale,
            draw=self.index,
        )

    def _kept(self, method: Compression | None, name: str, gradient: Tensor) -> dict[str, Tensor]:
        keys = set(state_shapes(method, tuple(gradient.shape)))
        if not keys:
            return {}
        if set(self.state.get(name, {})) != keys:
            self.state[name] = initial_state(method, name, gradient)
        return self.state[name]


@dataclass(frozen=True)
class _Computed:
    """A bucket in fp32: DDP's own memory where that is fp32."""

    flat: Tensor
    gradients: list[Tensor]


def _in_float32(arrival: Arrival) -> _Computed:
    if arrival.buffer.dtype == torch.float32:
        return _Computed(arrival.buffer, arrival.gradients)
    flat = arrival.buffer.float()
    first = arrival.buffer.storage_offset()
    views = [flat.as_strided(g.shape, g.stride(), g.storage_offset() - first) for g in arrival.gradients]
    return _Computed(flat, views)
