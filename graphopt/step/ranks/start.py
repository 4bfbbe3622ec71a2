"""How several processes start from the same model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from graphopt.base.errors import UsageError
from graphopt.device.ranks import Ranks
from graphopt.device.storages import local_of
from graphopt.plan.agreement import raise_together
from graphopt.step.ranks.settings import Settings, difference_error
from graphopt.step.sharding.guard import is_guarded


@contextmanager
def raising_together(ranks: Ranks | None) -> Iterator[None]:
    """What one rank raises inside is raised on all; a collective call, if there are ranks."""
    error: Exception | None = None
    try:
        yield
    except Exception as caught:  # raised again when the other ranks know
        error = caught
    if ranks is not None:
        raise_together(ranks, error)
    elif error is not None:
        raise error


def start_alike(ranks: Ranks, model: nn.Module, *, shard: str, copies: Ranks | None) -> None:
    """Give all `copies` the first one's parameters and buffers, in place; a collective call of all ranks.

    Raises UsageError where the ranks' models do not have the same ones, or are to share out other things.
    """
    difference = difference_error(ranks, {"shard": shard, **_spelled(model)})
    if difference is not None:
        raise difference
    if copies is None:
        return
    with torch.no_grad():
        for tensor in map(local_of, (*model.parameters(), *model.buffers())):
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, group=copies.group, group_src=0)
            if copies.rank != 0:
                tensor.copy_(whole)


def _spelled(model: nn.Module) -> Settings:
    kinds = {"parameter": model.named_parameters(), "buffer": model.named_buffers()}
    return {
        f"the {kind} {name}": f"{list(tensor.shape)} {tensor.dtype}{_placed(tensor)}"
        for kind, tensors in kinds.items()
        for name, tensor in tensors
    }


def _placed(tensor: torch.Tensor) -> str:
    """Where the shards of a DTensor are."""
    return "" if local_of(tensor) is tensor else f" {tensor.placements}"  # type: ignore[attr-defined]


def check_unwrapped(model: nn.Module) -> None:
    """Raise UsageError for a model that DDP, FSDP or another step hands to the other ranks already."""
    if is_guarded(model):
        raise UsageError(
            "the parameters of this model are shared out already by another train_step(shard=...): step.unshard() "
            "makes them whole again"
        )
    if not dist.is_available():
        return
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
