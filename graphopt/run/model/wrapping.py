"""DDP and FSDP2 around a model, seen from inside of its forward: whose processes, and what they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from graphopt.base.errors import UsageError

if dist.is_available():
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.nn.parallel import DistributedDataParallel

    Wrapping = DistributedDataParallel | FSDPModule
else:
    Wrapping = None  # type: ignore[assignment, misc]


def wrapping_of(model: nn.Module) -> Wrapping | None:
    """The DDP module whose forward is running, or the model itself where it is sharded; None where neither is."""
    if not dist.is_available():
        return None
    if isinstance(model, FSDPModule):
        return model
    active: DistributedDataParallel | None = DistributedDataParallel._get_active_ddp_module()
    return active


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's own forward gathers its parameters first (FSDP2)."""
    return dist.is_available() and isinstance(model, FSDPModule)


def group_of(wrapping: Wrapping) -> dist.ProcessGroup:
    """The processes that hold the same parameters, or a shard of them each."""
    if isinstance(wrapping, DistributedDataParallel):
        group: dist.ProcessGroup = wrapping.process_group
        return group
    return wrapping._get_fsdp_state()._fsdp_param_groups[0]._all_gather_process_group


def sharding_group(modules: Iterable[nn.Module]) -> dist.ProcessGroup | None:
    """The processes that the first of these that has shards is sharded over; None where none has."""
    for module in modules:
        if is_sharded(module) and module._get_fsdp_state()._fsdp_param_groups:  # type: ignore[operator]
            return group_of(module)  # type: ignore[arg-type]
    return None


def bytes_of(wrapping: Wrapping, model: nn.Module) -> dict[str, int]:
    """What it holds on the device while `model` runs, beside parameters as the forward sees them, by kind.

    DDP: its buckets, into which it copies the gradients. FSDP2: the shards; and the largest message, which is
    the gathered parameters, kept until the forward ends, or the gradients to scatter with their shards.
    """
    if isinstance(wrapping, DistributedDataParallel):
        return {"DDP buckets": sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)}
    return sharded_bytes(wrapping._get_fsdp_state())


def sharded_bytes(state: Any) -> dict[str, int]:
    """The same of what FSDP2 knows of a module."""
    groups = state._fsdp_param_groups
    shards = gathered = scattered = 0
    for group in groups:
        for parameter in group.fsdp_params:
            whole, shard = parameter.sharded_param, parameter._sharded_param_data
            gathered_dtype = group.mp_policy.param_dtype or whole.dtype
            reduced_dtype = group.mp_policy.reduce_dtype or gathered_dtype
            shards += shard.numel() * shard.element_size()
            gathered += shard.numel() * group._all_gather_process_group.size() * _bytes_each(gathered_dtype)
            if whole.requires_grad:
                scattered += shard.numel() * (group._all_gather_process_group.size() + 1) * _bytes_each(reduced_dtype)
    return {"FSDP2 shards": shards, "FSDP2 messages": max(gathered, scattered)}


def holds_gradients(wrapping: Wrapping | None) -> bool:
    """Whether the parameters' gradients are in what `bytes_of` counts: views of DDP's buckets."""
    return dist.is_available() and isinstance(wrapping, DistributedDataParallel) and wrapping.gradient_as_bucket_view


def check_unwrapped(model: nn.Module) -> None:
    """Raise UsageError where DDP or FSDP is in the model already."""
    if not dist.is_available():
        return
    for name, module in model.named_modules():
        where = f" ({name!r})" if name else ""
        if isinstance(module, DistributedDataParallel):
            raise UsageError(
                f"the model is wrapped in DistributedDataParallel already{where}: optimize it before wrapping, "
                "DistributedDataParallel(graphopt.optimize(model, ...))"
            )
        if isinstance(module, FSDPModule):
            raise UsageError(
                f"the model is sharded by FSDP2 already{where}: optimize it before, or block by block, "
                "fully_shard(graphopt.optimize(block, ...))"
            )
        if isinstance(module, FullyShardedDataParallel):
            raise UsageError(f"FullyShardedDataParallel{where} is not supported: use FSDP2, torch's fully_shard")


def check_sharded_whole(model: nn.Module) -> None:
    """Raise UsageError where parts of an optimized model are sharded for themselves: they gather inside its graph."""
    if not dist.is_available():
        return
    inner = next((name for name, m in model.named_modules() if m is not model and isinstance(m, FSDPModule)), None)
    if inner is not None:
        raise UsageError(
            f"{inner!r} inside of the optimized {type(model).__name__} is sharded for itself, and gathers its "
            "parameters in the middle of the graph: optimize each of the blocks that are sharded instead, before "
            "sharding it, with the budget of that block"
        )


@contextmanager
def forward_replaced(model: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, the model's hooks run around another forward."""
    own = model.__dict__.get("forward")
    model.__dict__["forward"] = forward
    try:
        yield
    finally:
        del model.__dict__["forward"]
        if own is not None:
            model.__dict__["forward"] = own


def _bytes_each(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype).element_size()
