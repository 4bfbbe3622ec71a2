"""The ops that scatter compressed gradients, as nodes of a step's graph; they run on all ranks in one order.

    begin_exchange_(gradients, residuals, kept, overflow, inverse_scale, draw, beta, method, group, copies, world)
        -> the wire and what is received, which are on their way
    end_exchange_(wire, received, kept, overflow, scale, draw, shapes, method, group, copies, world)
        -> this rank's rows of the sums of the gradients, fp32, once they are there
    note_not_finite_(rows, overflow) -> nothing: the flag is raised where rows are not finite

Gradients are fp32 and contiguous, [rows, ...] each, and are overwritten. What is rounded off goes into `kept`, for what
is sent next; it is added to `residuals` in the first micro-batch of a step (`beta` 0.0), then to `kept` itself, so that
residuals stay as they were until ranks agree that nothing overflowed. Both are empty where nothing is kept back.
`method` is what `spell` makes of a way to compress; `group` and `copies` are labels, as in
`graphopt.kernels.sharding.ops`; `shapes` are those of the gradients, each behind its number of dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from graphopt.base.parts import part_of
from graphopt.compression.bucket import Agree, AllGather, AllReduce, Bucket, Message, Shape
from graphopt.compression.methods import QSGD, EightBit, HalfCast
from graphopt.compression.protocols import protocol_of
from graphopt.compression.rows import ByRows, decode, encode, note_not_finite, part_bytes
from graphopt.device.ranks import Ranks, ranks_of
from graphopt.kernels.define import define, no_result
from graphopt.kernels.sharding.ops import arrived, set_out
from graphopt.kernels.sharding.transport import Travelling, group_of, holders_of

#: QSGD draws for sums over copies as a rank that there is not.
_SECOND_DRAW = 2**24
_HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def spell(method: ByRows) -> str:
    """A method as an argument of these ops."""
    if isinstance(method, HalfCast):
        return f"half {str(method.dtype).removeprefix('torch.')}"
    return f"qsgd {method.bits} {method.seed}" if isinstance(method, QSGD) else "8-bit"


def flat_shapes(shapes: Sequence[Shape]) -> list[int]:
    """Shapes as an argument of these ops."""
    return [number for shape in shapes for number in (len(shape), *shape)]


def _begin(
    gradients: list[Tensor],
    residuals: list[Tensor],
    kept: list[Tensor],
    overflow: Tensor,
    inverse_scale: Tensor | None,
    draw: int,
    beta: float,
    method: str,
    label: str,
    copies: str,
    world: int,
) -> tuple[Tensor, Tensor]:
    how, group = _method(method), group_of(label)
    rank = dist.get_rank(group)
    wire = encode(
        how,
        gradients,
        kept if beta else residuals,
        overflow,
        inverse_scale,
        draw=draw,
        rank=_number(rank, world, copies),
        world=world,
    )
    for tensor, left in zip(kept, gradients if kept else (), strict=True):
        tensor.copy_(left)
    sent = part_bytes(how, [tuple(g.shape) for g in gradients], world)
    received = wire.new_empty(world * sent[rank])
    holders, sizes = holders_of(wire), [sent[rank]] * world
    # views, which nobody else holds: so is seen when the backend's thread has let go of them
    work = dist.all_to_all_single(received[:], wire[:], sizes, sent, group=group, async_op=True)
    set_out(wire, Travelling([work], holders))
    return wire, received


def _fake_begin(gradients: list[Tensor], *arguments: Any) -> tuple[Tensor, Tensor]:
    """What the first rank receives, than which no other has more: all ranks plan alike."""
    *_, method, _label, _copies, world = arguments
    sent = part_bytes(_method(method), [tuple(map(int, g.shape)) for g in gradients], world)
    new = gradients[0].new_empty
    return new(sum(sent), dtype=torch.uint8), new(world * sent[0], dtype=torch.uint8)


def _end(
    wire: Tensor,
    received: Tensor,
    kept: list[Tensor],
    overflow: Tensor,
    scale: Tensor | None,
    draw: int,
    shapes: list[int],
    method: str,
    label: str,
    copies: str,
    world: int,
) -> list[Tensor]:
    how, rank = _method(method), dist.get_rank(group_of(label))
    rows = _empty_rows(arrived(wire), shapes, rank, world)
    # which the backend's thread holds too
    Travelling([], holders_of(rows[0])).arrive(received)
    decode(how, received, rows, overflow, None if copies else scale, world=world)
    some = [each for each in rows if each.numel()]
    if copies and some:
        mine = [whole[part_of(len(whole), rank, world)] for whole in kept]
        left = [each for each, row in zip(mine, rows, strict=bool(mine)) if row.numel()]
        _sum_over_copies(how, some, left, overflow, scale, draw, _number(rank, world, copies), copies)
    return rows


def _sum_over_copies(
    method: ByRows,
    rows: list[Tensor],
    left: list[Tensor],
    overflow: Tensor,
    scale: Tensor | None,
    draw: int,
    number: int,
    copies: str,
) -> None:
    """Rows, in true units if quantized, become their sums over copies; what is rounded off is added to `left`."""
    ranks = ranks_of(group_of(copies))
    assert ranks is not None
    # another rank of the draw than that of the scatter
    place = ranks.rank if not isinstance(method, QSGD) else _SECOND_DRAW + number
    state: dict[str, list[Any]] = {"residual": []} if isinstance(method, EightBit) else {}
    bucket = Bucket(
        *(tuple(tuple(each.shape) for each in rows), rows, overflow, place, ranks.world, ranks.backend, state),
        scale=None if isinstance(method, HalfCast) else scale,
        draw=draw,
    )
    running = protocol_of(method)(bucket)
    said = next(running)
    while not isinstance(said, Agree):
        said = running.send(_answer(said, ranks))
    for tensor, rounded_off in zip(left, rows if left else (), strict=True):
        tensor.add_(rounded_off)
    assert next(running, None) is None


def _answer(message: Message, ranks: Ranks) -> Tensor:
    """What the ranks make of a message, when the backend has let go of both. It is given views, as above."""
    own: Tensor = message.tensor
    result = own
    if not isinstance(message, AllReduce):
        result = own.new_empty(own.numel() * (ranks.world if isinstance(message, AllGather) else 1))
    holders = holders_of(own), holders_of(result)
    if isinstance(message, AllReduce):
        work = dist.all_reduce(own[:], group=ranks.group, async_op=True)
    elif isinstance(message, AllGather):
        work = dist.all_gather(list(result.chunk(ranks.world)), own[:], group=ranks.group, async_op=True)
    else:
        work = dist.all_to_all_single(result[:], own[:], group=ranks.group, async_op=True)
    Travelling([work], holders[0]).arrive(own)
    Travelling([], holders[1]).arrive(result)
    return result


def _fake_end(wire: Tensor, *arguments: Any) -> list[Tensor]:
    """The first rank's rows, of which no other has more."""
    *_, shapes, _method, _label, _copies, world = arguments
    return _empty_rows(wire, shapes, 0, world)


def _empty_rows(like: Tensor, numbers: Sequence[int], rank: int, world: int) -> list[Tensor]:
    shapes, left = [], list(numbers)
    while left:
        end = left[0] + 1
        shapes.append(left[1:end])
        left = left[end:]
    parts = [part_of(shape[0], rank, world) for shape in shapes]
    sizes = [(part.stop - part.start, *shape[1:]) for part, shape in zip(parts, shapes, strict=True)]
    return [like.new_empty(size, dtype=torch.float32) for size in sizes]


def _number(rank: int, world: int, copies: str) -> int:
    """This process among all that train, as a mesh (copies, rows) counts them."""
    return rank + (world * dist.get_rank(group_of(copies)) if copies else 0)


def _method(text: str) -> ByRows:
    kind, *options = text.split()
    if kind == "half":
        return HalfCast(_HALF[options[0]])
    return QSGD(*map(int, options)) if kind == "qsgd" else EightBit()


_EXCHANGE = "str method, str group, str copies, int world"
begin_exchange_ = define(
    "begin_exchange_(Tensor(a!)[] gradients, Tensor[] residuals, Tensor(b!)[] kept, Tensor(c!) overflow, "
    f"Tensor? inverse_scale, SymInt draw, float beta, {_EXCHANGE}) -> (Tensor, Tensor)",
    _begin,
    _fake_begin,
)
end_exchange_ = define(
    "end_exchange_(Tensor wire, Tensor received, Tensor(a!)[] kept, Tensor(b!) overflow, Tensor? scale, SymInt draw, "
    f"int[] shapes, {_EXCHANGE}) -> Tensor[]",
    _end,
    _fake_end,
)
note_not_finite_ = define("note_not_finite_(Tensor[] rows, Tensor(a!) overflow) -> ()", note_not_finite, no_result)
