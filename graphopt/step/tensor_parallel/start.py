"""What processes that train one model of DTensors make sure of before the first step; collective calls."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from graphopt.base.errors import UsageError
from graphopt.device.messages import gather
from graphopt.device.ranks import Ranks
from graphopt.step.tensor_parallel.placement import TensorParallel


def check_groups_agree(everyone: Ranks, parallel: TensorParallel) -> TensorParallel:
    """With the groups of all ranks; raises UsageError, on all, where they do not fit together."""
    mine = {
        "shards": _members(parallel.shards),
        "copies": _members(parallel.copies),
        "place": parallel.shards.rank if parallel.shards else 0,
    }
    every: list[Any] = [json.loads(text) for text in gather(everyone, json.dumps(mine).encode())]
    for rank, one in enumerate(every):
        for other in one["shards"]:
            if every[other]["shards"] != one["shards"]:
                raise UsageError(
                    f"rank {rank} has shards over ranks {one['shards']}, and rank {other} over "
                    f"{every[other]['shards']}: make one mesh, in the same way on all ranks"
                )
        for other in one["copies"]:
            if (every[other]["copies"], every[other]["place"]) != (one["copies"], one["place"]):
                raise UsageError(
                    f"group= of rank {rank} has rank {other}, which does not hold the same shards, or has another "
                    "group: give each rank the group of those that hold the same shards, mesh['dp'].get_group()"
                )
    return replace(parallel, groups=tuple(sorted({tuple(one["shards"]) for one in every})))


def check_wholes_agree(
    everyone: Ranks, parameters: Mapping[str, torch.Tensor], parallel: TensorParallel, steps: int
) -> None:
    """Raise UsageError, on all ranks, where a parameter of which each has everything is not the same on all.

    Each updates its own copy, by gradients that are to be the same. `parameters` are this rank's, by name; so many
    `steps` were taken.
    """
    mine = {name: _hash(parameter) for name, parameter in parameters.items() if name in parallel.whole}
    every: list[dict[str, str]] = [json.loads(text) for text in gather(everyone, json.dumps(mine).encode())]
    for rank, one in enumerate(every):
        differing = [name for name, value in every[0].items() if one.get(name) != value]
        if differing:
            what = f"the parameter {differing[0]} is not sharded, and has other values on rank 0 than on rank {rank}"
            raise UsageError(f"{what}{_why_they_differ(steps)}")


def _why_they_differ(steps: int) -> str:
    if not steps:
        return ": make the model from one seed on all ranks of the mesh, or name the parameter in the parallelize plan"
    return (
        f", after {steps} step{'s' * (steps > 1)}: its gradients differ, so that the ranks train different models. All "
        "ranks that hold shards of one copy must get the same batch, and draw the same random numbers where they all "
        "have everything; what reads a part of a sequence needs SequenceParallel in the parallelize plan"
    )


def _members(ranks: Ranks | None) -> list[int]:
    return list(dist.get_process_group_ranks(ranks.group)) if ranks else [dist.get_rank()]


def _hash(tensor: torch.Tensor) -> str:
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(content.numpy().tobytes()).hexdigest()[:16]
