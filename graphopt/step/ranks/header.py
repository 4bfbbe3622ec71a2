"""What ranks tell each other before every step, in one small message."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
import torch.distributed as dist

from graphopt.device.ranks import Ranks

_FORMAT = struct.Struct("<dqqqqqqqq?????")


@dataclass(frozen=True)
class Header:
    """Of one rank: what its batch weighs, the rows of its micro-batches, and numbers that stand for what else it has.

    `graphs` are those to plan, `messages` what the step sends, `inside` what the model itself sends, `batch` what it
    was given; `settings`, `program` and `inputs` are those of the modules of that name. `failed` where an error keeps
    it from taking the step, `is_planned` where all its graphs are. The last three are those of its watch.
    """

    weight: float = 0.0
    micro_rows: int = 0
    graphs: int = 0
    messages: int = 0
    inside: int = 0
    batch: int = 0
    settings: int = 0
    program: int = 0
    inputs: int = 0
    failed: bool = False
    is_planned: bool = False
    is_due: bool = False
    may_try: bool = False
    is_confirmed: bool = False


def exchange_headers(ranks: Ranks, header: Header, device: torch.device) -> list[Header]:
    """All ranks' headers, in rank order. A collective call; raises RuntimeError where a rank does not come."""
    where = device if "nccl" in ranks.backend and "gloo" not in ranks.backend else torch.device("cpu")
    mine = torch.frombuffer(bytearray(_FORMAT.pack(*astuple(header))), dtype=torch.uint8).to(where)
    received = [torch.empty_like(mine) for _ in range(ranks.world)]
    dist.all_gather(received, mine, group=ranks.group)
    return [Header(*_FORMAT.unpack(one.cpu().numpy().tobytes())) for one in received]


def number_of(lines: Sequence[str]) -> int:
    """A number that stands for lines of text; the same in every process."""
    return int.from_bytes(hashlib.sha256("\n".join(lines).encode()).digest()[:7], "little")
