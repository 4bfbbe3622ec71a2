"""Bytes between processes, while a model is being captured or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from graphopt.base.errors import RankError
from graphopt.device.ranks import Ranks
from graphopt.device.timing import plain_execution


def gather(ranks: Ranks, message: bytes) -> list[bytes]:
    """Every rank's message, in rank order. A collective call; raises RankError where one does not come."""
    with _reached(ranks):
        sizes = [torch.empty(1, dtype=torch.int64, device=device_of(ranks)) for _ in range(ranks.world)]
        dist.all_gather(sizes, torch.tensor([len(message)], device=device_of(ranks)), group=ranks.group)
        lengths = [int(size) for size in sizes]
        padded = message.ljust(max(lengths), b"\0")
        received = [torch.empty(len(padded), dtype=torch.uint8, device=device_of(ranks)) for _ in lengths]
        dist.all_gather(received, _tensor(padded, ranks), group=ranks.group)
        return [_bytes(tensor)[:length] for tensor, length in zip(received, lengths, strict=True)]


def broadcast(ranks: Ranks, message: bytes) -> bytes:
    """The first rank's message, on all. A collective call; raises RankError where one does not come."""
    with _reached(ranks):
        length = torch.tensor([len(message)], device=device_of(ranks))
        dist.broadcast(length, group=ranks.group, group_src=0)
        content = torch.empty(int(length), dtype=torch.uint8, device=device_of(ranks))
        if ranks.rank == 0:
            content.copy_(_tensor(message, ranks))
        dist.broadcast(content, group=ranks.group, group_src=0)
        return _bytes(content)


@contextmanager
def _reached(ranks: Ranks) -> Iterator[None]:
    try:
        with plain_execution(torch.device("cpu")):  # a capture may be under way, whose tensors are fake
            yield
    except RuntimeError as error:
        raise RankError(
            f"rank {ranks.rank} waited in vain for the other {ranks.world - 1} to plan together with it: {error}. "
            "Did all of them call the model, or optimize() with example_inputs? `group` names others than all"
        ) from error


def device_of(ranks: Ranks) -> torch.device:
    """Where the group's backend takes tensors from."""
    only_cuda = "nccl" in ranks.backend and "gloo" not in ranks.backend
    return torch.device("cuda", torch.cuda.current_device()) if only_cuda else torch.device("cpu")


def _tensor(message: bytes, ranks: Ranks) -> torch.Tensor:
    # a copy: Python's own memory can be given back only by a thread that has Python's lock
    return torch.frombuffer(bytearray(message or b"\0"), dtype=torch.uint8)[: len(message)].clone().to(device_of(ranks))


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()
