"""The ops of sharded parameters, as nodes of a step's graph; they run on all ranks in one order.

    gather(shards, rows, group)       -> the whole parameters, which are on their way
    gathered(whole)                   -> one of them, there: a view, made where it is read
    begin_scatter_(gradients, group)  -> nothing: gradients are on their way, and are overwritten
    end_scatter(gradients, group, copies, world) -> this rank's rows of their sums, once they are there
    share_(wholes, group)             -> nothing: every rank gives its rows of whole parameters to the others
    norm_of_ranks(norm, overflow, p, group) -> the norm over all ranks' rows, the highest of their flags

`group` is a label, of the ranks that share parameters out; `copies` that of the ranks with the same rows, over which
sums go too, "" where there are none.
Small tensors that are gathered or scattered together travel as one message, which is waited for at once.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from graphopt.base.parts import part_of
from graphopt.kernels.define import define
from graphopt.kernels.sharding.message import Message, together
from graphopt.kernels.sharding.transport import Travelling, begin_gather, begin_scatter, group_of, wait_for

#: What is on its way, by the address of the tensor that is sent or filled: a node has no other way to hand it on.
_ON_THE_WAY: dict[int, Travelling] = {}


def forget_what_is_on_the_way() -> None:
    """A step that raised may have left something."""
    _ON_THE_WAY.clear()


def set_out(tensor: Tensor, travelling: Travelling) -> None:
    """A tensor is on its way."""
    _ON_THE_WAY[tensor.data_ptr()] = travelling


def arrived(tensor: Tensor) -> Tensor:
    """The tensor, waited for if it is on its way."""
    if (travelling := _ON_THE_WAY.pop(tensor.data_ptr(), None)) is not None:
        travelling.arrive(tensor)
    return tensor


def _gather(shards: list[Tensor], rows: list[int], label: str) -> list[Tensor]:
    group = group_of(label)
    wholes = _empty_wholes(shards, rows, label)
    if len(wholes) > 1:
        Message(wholes, group).gather(shards)
    elif wholes[0].numel():
        set_out(wholes[0], begin_gather(wholes[0], shards[0], group))
    return wholes


def _empty_wholes(shards: list[Tensor], rows: list[int], label: str) -> list[Tensor]:  # noqa: ARG001
    """Memory for the wholes."""
    return [shard.new_empty((n, *shard.shape[1:])) for shard, n in zip(shards, rows, strict=True)]


def _begin_scatter(gradients: list[Tensor], label: str) -> None:
    if len(gradients) == 1 and gradients[0].numel():
        set_out(gradients[0], begin_scatter(gradients[0], group_of(label)))


def _end_scatter(gradients: list[Tensor], label: str, copies: str, world: int) -> list[Tensor]:  # noqa: ARG001
    rows = _scattered(gradients, group_of(label))
    if copies:
        wait_for([dist.all_reduce(each, group=group_of(copies), async_op=True) for each in rows if each.numel()])
    return rows


def _scattered(gradients: list[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    if len(gradients) > 1:
        return Message(gradients, group).scatter()
    whole = arrived(gradients[0])
    mine = part_of(len(whole), dist.get_rank(group), dist.get_world_size(group))
    return [whole[mine].clone()]


def _fake_end_scatter(
    gradients: list[Tensor],
    label: str,  # noqa: ARG001
    copies: str,  # noqa: ARG001
    world: int,
) -> list[Tensor]:
    """The first rank's rows, of which no rank has more: all ranks plan alike."""
    return [g.new_empty((part_of(len(g), 0, world).stop, *g.shape[1:])) for g in gradients]


def _share(wholes: list[Tensor], label: str) -> None:
    group = group_of(label)
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    parcels = together(whole for whole in wholes if whole.numel())
    in_place = [parcel[0] for parcel in parcels if len(parcel) == 1]
    travelling = [begin_gather(whole, whole[part_of(len(whole), rank, world)], group) for whole in in_place]
    for whole, each in zip(in_place, travelling, strict=True):
        each.arrive(whole)
    # what takes memory comes last: a backend's thread may only now let go of the gradients that were summed
    for parcel in parcels:
        if len(parcel) > 1:
            Message(parcel, group).gather([whole[part_of(len(whole), rank, world)] for whole in parcel])


def _norm_of_ranks(norm: Tensor, overflow: Tensor, p: float, label: str) -> tuple[Tensor, Tensor]:
    group = group_of(label)
    # every rank adds up in the same order, in float64
    mine = torch.stack([norm.to(torch.float64), overflow.to(torch.float64)])
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, mine, group=group)
    norms, flags = torch.stack(parts).unbind(1)
    whole = norms.max() if math.isinf(p) else torch.linalg.vector_norm(norms, p)
    return whole.to(norm.dtype), flags.max().to(overflow.dtype)


def _fake_norm(norm: Tensor, overflow: Tensor, p: float, group: str) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return torch.empty_like(norm), torch.empty_like(overflow)


def _nothing(tensors: list[Tensor], group: str) -> None:  # noqa: ARG001
    return None


gather = define("gather(Tensor[] shards, int[] rows, str group) -> Tensor[]", _gather, _empty_wholes)
gathered = define("gathered(Tensor(a) whole) -> Tensor(a)", arrived, lambda whole: whole)
begin_scatter_ = define("begin_scatter_(Tensor(a!)[] gradients, str group) -> ()", _begin_scatter, _nothing)
end_scatter = define(
    "end_scatter(Tensor[] gradients, str group, str copies, int world) -> Tensor[]", _end_scatter, _fake_end_scatter
)
share_ = define("share_(Tensor(a!)[] wholes, str group) -> ()", _share, _nothing)
norm_of_ranks = define(
    "norm_of_ranks(Tensor norm, Tensor overflow, float p, str group) -> (Tensor, Tensor)", _norm_of_ranks, _fake_norm
)
