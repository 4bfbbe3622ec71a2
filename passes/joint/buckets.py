"""Which gradients travel together: the order in which the backward makes them, cut where a message is long enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from graphopt.compression import plain
from graphopt.compression.bucket import Bucket, Protocol, Shape
from graphopt.compression.methods import Compression
from graphopt.compression.protocols import protocol_of, travels_by

#: A gradient of so many bytes goes alone, uncompressed, in place; smaller ones are packed to about as many.
WHOLE_BYTES = 2**20
#: Gradients that a compressed message stands for.
COMPRESSED_BYTES = 25 * 2**20


@dataclass(frozen=True)
class Parcel:
    """Gradients that travel in one message, by their places in the order of appearance; None: as they are."""

    places: tuple[int, ...]
    method: Compression | None
    protocol: Callable[[Bucket], Protocol]


def parcels(
    shapes: Sequence[Shape], dtypes: Sequence[torch.dtype], methods: Sequence[Compression | None]
) -> list[Parcel]:
    """Cut gradients into parcels, in the order in which these are complete.

    Methods compress float32 gradients that are worth it; all others travel as they are.
    """
    found: list[Parcel] = []
    open_places: dict[tuple[Compression | None, torch.dtype], list[int]] = {}
    for place, (shape, dtype, wanted) in enumerate(zip(shapes, dtypes, methods, strict=True)):
        method = travels_by(wanted, shape) if dtype == torch.float32 else None
        size = math.prod(shape) * dtype.itemsize
        if method is None and size >= WHOLE_BYTES:
            found.append(Parcel((place,), None, plain.whole))
            continue
        key = method, dtype
        open_places.setdefault(key, []).append(place)
        held = sum(math.prod(shapes[i]) * dtype.itemsize for i in open_places[key])
        if held >= (COMPRESSED_BYTES if method else WHOLE_BYTES):
            found.append(_parcel(open_places.pop(key), *key))
    found += [_parcel(places, *key) for key, places in open_places.items()]
    return sorted(found, key=lambda parcel: parcel.places[-1])


def _parcel(places: list[int], method: Compression | None, dtype: torch.dtype) -> Parcel:
    protocol = protocol_of(method) if method else plain.packed(dtype)
    return Parcel(tuple(places), method, protocol)
