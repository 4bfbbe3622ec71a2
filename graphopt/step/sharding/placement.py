"""Over which ranks parameters are shared out, and over which they are copied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from graphopt.base.errors import UsageError
from graphopt.device.ranks import Ranks, ranks_of

if TYPE_CHECKING:  # loading it takes longer than many a small model's capture
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Placement:
    """All ranks that train; those that this one shares parameters out with; and those that hold the same rows as it.

    `mesh` has one dimension, or first that of copies, then that of rows.
    """

    ranks: Ranks
    rows: Ranks
    copies: Ranks | None
    mesh: DeviceMesh

    @property
    def spelled(self) -> str:
        """The same on all ranks that agree."""
        return f"rows over {self.rows.world} ranks" + (f", {self.copies.world} copies" if self.copies else "")


def placement_of(shard: object, ranks: Ranks, device: torch.device) -> Placement:
    """What `train_step(shard=...)` asks for: all ranks, or a mesh of them.

    Raises UsageError for a mesh of other ranks than those that train, or of more than two dimensions.
    """
    from torch.distributed.device_mesh import DeviceMesh

    if shard is True or isinstance(shard, str):
        return Placement(ranks, ranks, None, DeviceMesh.from_group(ranks.group, device.type))
    if not isinstance(shard, DeviceMesh):
        raise UsageError(f"shard: expected True, False or a DeviceMesh, got {type(shard).__name__}")
    if shard.ndim > 2:
        raise UsageError(
            f"shard: expected a mesh of one dimension, or of two (copies, rows), got one of {shard.ndim} dimensions"
        )
    if shard.size() != ranks.world:
        raise UsageError(
            f"shard: the mesh has {shard.size()} ranks, and {ranks.world} train together: give a mesh of all of them, "
            "or the group of its ranks as group="
        )
    rows = ranks_of(shard.get_group(shard.ndim - 1))
    copies = ranks_of(shard.get_group(0)) if shard.ndim == 2 else None
    if rows is None:
        raise UsageError(f"shard: the mesh {shard} shares rows out over a single rank: leave shard= out")
    return Placement(ranks, rows, copies, shard)
