"""Rows that are shared out over ranks: which of them are whose."""

from __future__ import annotations

from graphopt.base.rounding import ceil_div


def part_of(rows: int, rank: int, world: int) -> slice:
    """The rows of a rank: as many for each, rounded up, so that the last ones may have fewer, or none.

    That is how `torch.chunk` cuts, and `torch.distributed.tensor.Shard(0)` with it.
    """
    each = ceil_div(rows, world)
    return slice(min(rank * each, rows), min((rank + 1) * each, rows))
