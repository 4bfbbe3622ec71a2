"""The processes that train together, and which of them this one is."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process's place in its group. `name` is how functional collectives call the group."""

    group: dist.ProcessGroup
    rank: int
    world: int
    name: str
    backend: str


def ranks_of(group: dist.ProcessGroup | None = None) -> Ranks | None:
    """The group's, or by default all processes'; None where this process trains alone."""
    if not dist.is_available() or not dist.is_initialized():
        return None
    group = group if group is not None else dist.group.WORLD
    assert group is not None
    world = dist.get_world_size(group)
    if world < 2:
        return None
    return Ranks(group, dist.get_rank(group), world, group.group_name, dist.get_backend(group))
