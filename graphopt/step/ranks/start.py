"""How several processes start from the same model."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from graphopt.base.errors import UsageError
from graphopt.device.ranks import Ranks


def start_alike(ranks: Ranks | None, model: nn.Module) -> None:
    """Give all ranks the first one's parameters and buffers, in place; a collective call, if there are ranks.

    Raises UsageError for a model that DDP, or FSDP, hands to the other ranks already.
    """
    if dist.is_available():
        _check_unwrapped(model)
    if ranks is None:
        return
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, group=ranks.group, group_src=0)
            if ranks.rank != 0:
                tensor.copy_(whole)


def _check_unwrapped(model: nn.Module) -> None:
    # here, as loading DTensor takes longer than many a small model's capture
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel, FullyShardedDataParallel)
    if any(isinstance(module, wrappers) for module in model.modules()):
        raise UsageError(
            "train_step() sends gradients to the other ranks itself: give it the model as it was before "
            "DistributedDataParallel(...) or FullyShardedDataParallel(...)"
        )
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        raise UsageError(
            "train_step() takes whole parameters, and these are sharded: give it the model as it was before "
            "fully_shard(...), or use graphopt.optimize(), which goes with fully_shard, and your own loop"
        )
