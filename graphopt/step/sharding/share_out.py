"""Which of ZeRO's stages (Rajbhandari et al., "ZeRO", 2020, section 5) `train_step(shard=...)` asks for."""

from __future__ import annotations

import torch
from torch import nn

from graphopt.compression.link import Link
from graphopt.device.ranks import Ranks
from graphopt.step.sharding.parameters import ShardedParameters
from graphopt.step.sharding.placement import placement_of
from graphopt.step.sharding.shared_state import SharedState

#: How parameters, or state with or without gradients, are shared out.
Shared = ShardedParameters | SharedState


def share_out(shard: object, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks, link: Link) -> Shared:
    """What this rank keeps from now on; raises UsageError, with nothing changed, where something cannot be shared out.

    "optimizer" and "gradients" leave parameters whole, and the first one gradients too; all else is as `placement_of`.
    """
    placed = placement_of(shard, ranks, next(model.parameters()).device)
    if isinstance(shard, str):
        return SharedState(model, optimizer, placed, link, scatters=shard == "gradients")
    return ShardedParameters(model, optimizer, placed, link)
