"""A bucket of gradients on its way through a compression protocol, and what a protocol says to other ranks.

A protocol is a generator written once and run twice: on tensors, by the hooks of DDP, and on fx proxies, by the
`compress` pass, which records its ops as nodes. It yields a message, and gets back what the ranks made of it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

#: A tensor, or the fx proxy of one.
TensorLike = Any
Shape = tuple[int, ...]


@dataclass(frozen=True)
class AllReduce:
    """The sum over ranks is wanted; `tensor` may be overwritten."""

    tensor: TensorLike


@dataclass(frozen=True)
class AllGather:
    """Every rank's `tensor` (1-d, of one length on all ranks) is wanted, one behind the other in rank order."""

    tensor: TensorLike


@dataclass(frozen=True)
class AllToAll:
    """Of each rank the part of its `tensor` (1-d, `world` equal parts) that is this rank's, in rank order."""

    tensor: TensorLike


@dataclass(frozen=True)
class Agree:
    """`bucket.overflow` shall be the maximum over ranks (and over all buckets of the step) before it goes on.

    It is the last thing a protocol yields: nothing is sent after it, and what ranks keep is written after it only.
    """


Message = AllReduce | AllGather | AllToAll
#: Yields messages; is sent the (waited for) result of each, None for Agree.
Protocol = Generator[Message | Agree, TensorLike, None]


@dataclass(frozen=True)
class Bucket:
    """Gradients that travel together.

    `gradients` come in as this rank's share of the sum, times the loss scale; a protocol may keep in them what it
    will keep back, until the ranks agree; at the end they are the sum over ranks, times the loss scale.
    `state[key]` has one tensor a gradient (see `state_shapes` of the protocols), in true units: not scaled.
    `inverse_scale` and `scale` are fp32 scalars, or None without a loss scale. `overflow` is a fp32 scalar that a
    protocol sets to 1.0 where a gradient is not finite; where it is not 0.0 after `Agree`, state keeps its bits.
    `draw` counts steps, for stochastic methods. `shapes` are the gradients'.
    """

    shapes: tuple[Shape, ...]
    gradients: list[TensorLike]
    overflow: TensorLike
    rank: int
    world: int
    backend: str
    state: dict[str, list[TensorLike]] = field(default_factory=dict)
    inverse_scale: TensorLike | None = None
    scale: TensorLike | None = None
    draw: TensorLike | int = 0
