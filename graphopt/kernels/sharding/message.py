"""Small tensors that travel between ranks together, as one message: rank by rank, each rank's rows of all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from graphopt.base.parts import part_of
from graphopt.kernels.sharding.transport import Travelling, holders_of


def packed_elements(shapes: Sequence[Sequence[Any]]) -> int:
    """Elements of the message in which tensors of these shapes travel; 0 for one tensor, which travels as it is."""
    return sum(math.prod(map(int, shape)) for shape in shapes) if len(shapes) > 1 else 0


@dataclass(frozen=True)
class Message:
    """The rows of `wholes`, [rows, ...] each, in the order in which they travel."""

    wholes: Sequence[Tensor]
    group: dist.ProcessGroup

    def gather(self, shards: Sequence[Tensor]) -> None:
        """Fill the wholes with all ranks' rows, of which this one's are `shards`."""
        message = self._new()
        parts = self._parts(message)
        torch.cat([shard.reshape(-1) for shard in shards], out=parts[dist.get_rank(self.group)])
        holders = holders_of(message)
        sent = [(r, part[:]) for r, part in enumerate(parts) if part.numel()]
        works = [dist.broadcast(part, group=self.group, group_src=r, async_op=True) for r, part in sent]
        del sent  # only the backend holds these views now, which tells when it lets go
        Travelling(works, holders).arrive(message)
        for rank, part in enumerate(parts):
            for rows, flat in zip(self._rows(rank), self._split(part, rank), strict=True):
                rows.copy_(flat.view_as(rows))

    def scatter(self) -> list[Tensor]:
        """This rank's rows of the sums of the wholes over ranks."""
        message = self._new()
        parts = self._parts(message)
        for rank, part in enumerate(parts):
            torch.cat([rows.reshape(-1) for rows in self._rows(rank)], out=part)
        holders = holders_of(message)
        sent = [(r, part[:]) for r, part in enumerate(parts) if part.numel()]
        works = [dist.reduce(part, group=self.group, group_dst=r, async_op=True) for r, part in sent]
        del sent
        Travelling(works, holders).arrive(message)
        rank = dist.get_rank(self.group)
        sums = zip(self._split(parts[rank], rank), self._rows(rank), strict=True)
        return [flat.view(rows.shape).clone() for flat, rows in sums]

    def _new(self) -> Tensor:
        return self.wholes[0].new_empty(packed_elements([whole.shape for whole in self.wholes]))

    def _parts(self, message: Tensor) -> list[Tensor]:
        ranks = range(dist.get_world_size(self.group))
        return list(message.split([sum(rows.numel() for rows in self._rows(rank)) for rank in ranks]))

    def _rows(self, rank: int) -> list[Tensor]:
        world = dist.get_world_size(self.group)
        return [whole[part_of(len(whole), rank, world)] for whole in self.wholes]

    def _split(self, part: Tensor, rank: int) -> list[Tensor]:
        return list(part.split([rows.numel() for rows in self._rows(rank)]))
