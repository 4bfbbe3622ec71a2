"""Which processes hold shards of a model's DTensors, and which hold the same ones, over whom gradients are summed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import nn

from graphopt.base.errors import UsageError
from graphopt.device.ranks import Ranks, ranks_of
from graphopt.device.storages import local_of
from graphopt.kernels.sharding.transport import label_of
from graphopt.passes.window.share_rows import RowsInWindow


@dataclass(frozen=True)
class TensorParallel:
    """The processes that train one model: `shards` hold shards of its parameters, this one among them.

    `copies` hold the same shards as this one, of other batches: gradients are summed over them. Each is None where
    there is no other process. `whole` names the parameters of which all ranks hold everything; `spelled` is the same
    on all ranks that agree. `groups` are all groups of ranks that hold shards of one copy, once the ranks have agreed.
    """

    shards: Ranks | None
    copies: Ranks | None
    whole: frozenset[str]
    spelled: str
    groups: tuple[tuple[int, ...], ...] = ()

    @property
    def in_window(self) -> RowsInWindow | None:
        """What a window does with shards of gradients; None where they are whole."""
        if self.shards is None:
            return None
        label = label_of(self.shards.group, "shards", self.shards.group)
        is_first = self.shards.rank == 0
        return RowsInWindow(label, counted_elsewhere=frozenset() if is_first else self.whole)

    @property
    def copies_of_this(self) -> list[int]:
        """The ranks whose gradients are summed, this one among them."""
        return dist.get_process_group_ranks(self.copies.group) if self.copies else [dist.get_rank()]


def has_dtensors(model: object) -> bool:
    """Whether a model has parameters that are DTensors."""
    return isinstance(model, nn.Module) and any(local_of(each) is not each for each in model.parameters())


def tensor_parallel_of(model: nn.Module, group: dist.ProcessGroup | None) -> TensorParallel:
    """How a model of DTensors trains, where gradients are summed over `group`; None: there is no second copy.

    Raises UsageError where that cannot be, or would sum gradients of different shards.
    """
    placed: dict[str, Any] = {n: p for n, p in model.named_parameters() if local_of(p) is not p}
    meshes = list(dict.fromkeys(parameter.device_mesh for parameter in placed.values()))
    if len(meshes) > 1 or meshes[0].ndim > 1:
        raise UsageError(
            f"train_step() takes parameters sharded over one mesh of one dimension, and these are over "
            f"{' and '.join(map(str, meshes))}: give parallelize_module() mesh['tp'], and give train_step() the group "
            "over which gradients are summed, group=mesh['dp'].get_group()"
        )
    for name, parameter in placed.items():
        _check_placed(name, parameter)
    of_mesh = meshes[0].get_group()
    members, copies = dist.get_process_group_ranks(of_mesh), [dist.get_rank()]
    if group is not None:
        copies = dist.get_process_group_ranks(group)
    _check_groups(members, copies, is_given=group is not None)
    sharded = {name for name, parameter in placed.items() if not parameter.placements[0].is_replicate()}
    whole = frozenset(name for name, _ in model.named_parameters() if name not in sharded)
    spelled = f"shards over {len(members)} ranks, {len(copies)} cop{'y' if len(copies) == 1 else 'ies'}"
    return TensorParallel(ranks_of(of_mesh), None if group is None else ranks_of(group), whole, spelled)


def _check_placed(name: str, parameter: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard

    (how,) = parameter.placements
    if type(how) not in (Replicate, Shard):
        raise UsageError(
            f"the parameter {name} is placed as {how}: train_step() takes DTensors that are Shard or Replicate"
        )
    if how.is_shard() and parameter.shape[how.dim] % parameter.device_mesh.size():
        raise UsageError(
            f"the parameter {name} of shape {list(parameter.shape)} does not divide evenly over "
            f"{parameter.device_mesh.size()} ranks along dimension {how.dim}: pad it, as each rank's graph must have "
            "the same shapes"
        )


def _check_groups(shards: Sequence[int], copies: Sequence[int], *, is_given: bool) -> None:
    world = dist.get_world_size()
    others = sorted(set(shards) & set(copies) - {dist.get_rank()})
    if others:
        raise UsageError(
            f"group= has rank {_listed(others)}, which holds other shards of the same parameters than rank "
            f"{dist.get_rank()}: their gradients must not be summed. Give the group of those that hold the same "
            "shards, mesh['dp'].get_group() of init_device_mesh(device, (copies, shards), "
            "mesh_dim_names=('dp', 'tp')), or leave group= out where there is one copy"
        )
    if len(shards) * len(copies) == world:
        return
    if not is_given:
        raise UsageError(
            f"the parameters are sharded over ranks {_listed(shards)} of {world} processes: say which of the others "
            "hold the same shards, so that gradients are summed over them, group=mesh['dp'].get_group()"
        )
    raise UsageError(
        f"ranks {_listed(shards)} hold the shards of the parameters, ranks {_listed(copies)} the same ones as this "
        f"rank, and there are {world} processes: all of them must train this model, {len(shards)} × {len(copies)}"
    )


def _listed(ranks: Iterable[int]) -> str:
    return ", ".join(map(str, ranks))
