"""Tensors and the storages behind them: which there are, and how many bytes of a device they take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from graphopt.device.allocator import at_least, at_most
from graphopt.device.elsewhere import holder_of


def tensors_in(value: object) -> list[torch.Tensor]:
    """The tensors of a value in order: in all that pytree knows, other sequences and mappings, and dataclasses."""
    if isinstance(value, torch.Tensor):
        return [value]
    found = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        else:
            found.extend(tensor for item in _items(leaf) for tensor in tensors_in(item))
    return found


def _items(leaf: object) -> Iterable[object]:
    """What is in a container that pytree takes for a leaf."""
    if isinstance(leaf, Mapping):
        return leaf.values()
    if isinstance(leaf, (list, tuple)):
        return leaf
    if is_dataclass(leaf) and not isinstance(leaf, type):
        return (getattr(leaf, field.name, None) for field in fields(leaf))
    return ()


def known(size: Any) -> int:
    """A size as a number: that of the capture where it is a symbol, of which nothing is asked that would tie it."""
    return size if type(size) is int else int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def storage_key(tensor: torch.Tensor) -> int:
    """Identity of a tensor's storage, as long as the tensor lives."""
    return int(tensor.untyped_storage()._cdata)


def storage_bytes(tensor: torch.Tensor, device: torch.device) -> int:
    """Bytes that the allocator of `device` hands out for the tensor's storage; 0 on another device, or elsewhere."""
    if not same_device(tensor, device) or holder_of(tensor) is not None:
        return 0
    return allocated_bytes(known(tensor.untyped_storage().nbytes()), device)


def allocated_bytes(number_bytes: int, device: torch.device) -> int:
    """Requested bytes as the allocator counts them, at the least: CUDA's caching allocator rounds up to 512."""
    return at_least(number_bytes) if device.type == "cuda" else number_bytes


def planned_bytes(number_bytes: int, device: torch.device) -> int:
    """The most that the allocator may count for a tensor of so many bytes that is to be made."""
    return at_most(number_bytes, device) if device.type == "cuda" else number_bytes


def same_device(tensor: torch.Tensor, device: torch.device) -> bool:
    """True where the tensor takes memory on `device`."""
    return tensor.device.type == device.type


def unique_storage_bytes(tensors: Iterable[torch.Tensor], device: torch.device) -> int:
    """Bytes of the distinct storages behind `tensors` on `device`."""
    parts = (part for tensor in tensors for part in stored_parts(tensor))
    return sum({storage_key(part): storage_bytes(part, device) for part in parts}.values())


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor: of a DTensor its shard, else the tensor itself."""
    shard: torch.Tensor | None = getattr(tensor, "_local_tensor", None)
    return tensor if shard is None else shard


def laid_out_like(shard: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """A tensor as `held` is one: a DTensor of its placements around this rank's shard, or the tensor itself."""
    if local_of(held) is held:
        return shard
    from torch.distributed.tensor import DTensor

    of: Any = held
    return DTensor.from_local(shard, of.device_mesh, of.placements, run_check=False, shape=of.shape, stride=of.stride())


def stored_parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors that hold what is in a tensor: itself, of a sparse one indices and values, of a DTensor its shard."""
    if (shard := local_of(tensor)) is not tensor:
        return stored_parts(shard)
    if tensor.layout is torch.strided:
        return (tensor,)
    if tensor.layout is torch.sparse_coo:
        return (tensor._indices(), tensor._values())
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    return ()
