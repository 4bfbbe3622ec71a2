"""What messages are on the network: functional collectives, the same on tensors and, as nodes, on fx proxies."""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.compression.bucket import AllGather, AllReduce, Message, TensorLike
from graphopt.compression.protocols import message_bytes
from graphopt.device.ranks import Ranks

_aten = torch.ops.aten
_c10d = torch.ops._c10d_functional


def begin(message: Message, ranks: Ranks, value: Tensor) -> TensorLike:
    """Send it: what the ranks make of it, to be read after it was waited for.

    `value` has the size and layout of the message's tensor: itself, or what is known of a proxy.
    """
    tensor = message.tensor
    if isinstance(message, AllReduce):
        if not value.is_contiguous():  # dense in another order; backends want it flat
            tensor = _aten.as_strided.default(tensor, [value.numel()], [1])
        return _c10d.all_reduce_.default(tensor, "sum", ranks.name)
    if isinstance(message, AllGather):
        return _c10d.all_gather_into_tensor.default(tensor, ranks.world, ranks.name)
    part = [value.numel() // ranks.world] * ranks.world
    return _c10d.all_to_all_single.default(tensor, part, part, ranks.name)


def begin_to_agree(overflow: TensorLike, ranks: Ranks) -> TensorLike:
    """Make a flag the highest of all ranks', in place; to be read after it was waited for."""
    return _c10d.all_reduce_.default(overflow, "max", ranks.name)


class Sender:
    """Sends tensors to the other ranks; `sent_bytes` counts what this one sends, if rings carry it."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.sent_bytes = 0

    def begin(self, message: Message) -> Tensor:
        """Send it; the result is to be passed through `finish` before it is read."""
        self.sent_bytes += message_bytes(message, self.ranks.world)
        result: Tensor = begin(message, self.ranks, message.tensor)
        return result

    def finish(self, result: Tensor) -> Tensor:
        """Wait for it."""
        waited: Tensor = _c10d.wait_tensor.default(result)
        return waited

    def agree(self, overflow: Tensor) -> None:
        """Make the flag the highest of all ranks', in place."""
        self.finish(begin_to_agree(overflow, self.ranks))
