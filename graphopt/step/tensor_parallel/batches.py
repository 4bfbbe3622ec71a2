"""Whether the ranks that hold shards of one copy of a model were given the same batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from graphopt.step.ranks.header import number_of

#: Elements of each tensor that are looked at, evenly over it: batches of other samples differ nearly everywhere, and
#: to read all of 256 images at every step takes longer than the message that tells of it.
SAMPLED = 1024
_PLAIN = (bool, int, float, complex, str, type(None))


def number_of_batch(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """A number that stands for a batch, by some elements of each tensor; waits for the device that they are on."""
    lines = []
    for leaf in pytree.tree_leaves((args, dict(sorted(kwargs.items())))):
        if isinstance(leaf, torch.Tensor):
            lines.append(f"{list(leaf.shape)} {leaf.dtype} {_sampled(leaf.detach()).hex()}")
        elif isinstance(leaf, _PLAIN):
            lines.append(repr(leaf))
    return number_of(lines)


class Batches:
    """Compares what ranks were given, step by step, and tells once of what differs."""

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        self._groups, self._told = groups, False

    def compare(self, numbers: Sequence[int]) -> None:
        """Warn where ranks that hold shards of one copy were given others: `numbers` are theirs, in rank order."""
        differing = [group for group in self._groups if len({numbers[rank] for rank in group}) > 1]
        if not differing or self._told:
            return
        self._told = True
        warnings.warn(
            f"graphopt: ranks {', '.join(map(str, differing[0]))} hold shards of one model, and were given batches of "
            "other content. They must all get the same batch (seed the loader by mesh['dp'].get_local_rank(), not by "
            "the rank), or they train on none of them. Only where the parallelize plan takes each rank's input for a "
            "part of one, as PrepareModuleInput(input_layouts=Shard(1)) does, is that what you want.",
            stacklevel=2,
        )


def _sampled(tensor: torch.Tensor) -> bytes:
    if tensor.layout != torch.strided or not tensor.numel():
        return b""
    count = min(tensor.numel(), SAMPLED)
    at = torch.arange(count, device=tensor.device) * tensor.numel() // count
    places = []
    for size in reversed(tensor.shape):
        places.append(at % size)
        at = at // size
    found = tensor[tuple(reversed(places))] if places else tensor
    return found.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
