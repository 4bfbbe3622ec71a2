"""Small tensors that travel between ranks together, as one message: rank by rank, each rank's rows of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from graphopt.base.parts import part_of
from graphopt.kernels.sharding.transport import ALONE_BYTES, begin_broadcasts, begin_sums


def packed_elements(shapes: Sequence[Sequence[Any]]) -> int:
    """Elements of the message in which tensors of these shapes travel; 0 for one tensor, which travels as it is."""
    return sum(math.prod(map(int, shape)) for shape in shapes) if len(shapes) > 1 else 0


def together(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Tensors by what travels together: large ones alone, small ones of one dtype until they are as large as those."""
    found: list[list[Tensor]] = []
    open_parcels: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.nbytes >= ALONE_BYTES:
            found.append([tensor])
            continue
        parcel = open_parcels.setdefault(tensor.dtype, [])
        parcel.append(tensor)
        if sum(each.nbytes for each in parcel) >= ALONE_BYTES:
            found.append(open_parcels.pop(tensor.dtype))
    return [*found, *open_parcels.values()]


def packed_bytes(tensors: Iterable[Tensor]) -> int:
    """Of the largest message that is packed of these tensors; 0 where each travels as it is."""
    parcels = together(tensors)
    return max((sum(each.nbytes for each in parcel) for parcel in parcels if len(parcel) > 1), default=0)


@dataclass(frozen=True)
class Message:
    """The rows of `wholes`, [rows, ...] each, in the order in which they travel."""

    wholes: Sequence[Tensor]
    group: dist.ProcessGroup

    def gather(self, shards: Sequence[Tensor]) -> None:
        """Fill the wholes with all ranks' rows, of which this one's are `shards`."""
        message, parts = self._new(), self._parts()
        torch.cat([shard.reshape(-1) for shard in shards], out=message[parts[dist.get_rank(self.group)]])
        begin_broadcasts(message, parts, self.group).arrive(message)
        for rank, part in enumerate(parts):
            for rows, flat in zip(self._rows(rank), self._split(message[part], rank), strict=True):
                rows.copy_(flat.view_as(rows))

    def scatter(self) -> list[Tensor]:
        """This rank's rows of the sums of the wholes over ranks."""
        message, parts = self._new(), self._parts()
        for rank, part in enumerate(parts):
            torch.cat([rows.reshape(-1) for rows in self._rows(rank)], out=message[part])
        begin_sums(message, parts, self.group).arrive(message)
        rank = dist.get_rank(self.group)
        sums = zip(self._split(message[parts[rank]], rank), self._rows(rank), strict=True)
        return [flat.view(rows.shape).clone() for flat, rows in sums]

    def _new(self) -> Tensor:
        return self.wholes[0].new_empty(packed_elements([whole.shape for whole in self.wholes]))

    def _parts(self) -> list[slice]:
        """Of the message, each rank's."""
        sizes = [sum(rows.numel() for rows in self._rows(rank)) for rank in range(dist.get_world_size(self.group))]
        ends = list(accumulate(sizes))
        return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]

    def _rows(self, rank: int) -> list[Tensor]:
        world = dist.get_world_size(self.group)
        return [whole[part_of(len(whole), rank, world)] for whole in self.wholes]

    def _split(self, part: Tensor, rank: int) -> list[Tensor]:
        return list(part.split([rows.numel() for rows in self._rows(rank)]))
