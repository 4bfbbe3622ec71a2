"""Profiled: each distinct op is run on its device, once for all graphs, for its seconds and its scratch bytes."""

from __future__ import annotations

import hashlib
import math
import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.fx import Node

from graphopt import kernels
from graphopt.base.progress import phase
from graphopt.cost_models.cache import cache_path, read_entries, write_entries
from graphopt.cost_models.costs import OpCost
from graphopt.cost_models.device_speed import at_hand, environment
from graphopt.cost_models.inputs import runnable
from graphopt.cost_models.roofline import roofline
from graphopt.cost_models.scratch import scratch_bytes
from graphopt.cost_models.signature import Signature, signature
from graphopt.device.timing import least_seconds, plain_execution

# In the first, CUDA scratch counted what garbage collection freed meanwhile; in the second, that of EmbeddingBag's
# backward was of empty bags.
_KIND = "graphopt.op-costs/3"


@dataclass(frozen=True, slots=True)
class ProfileLimits:
    """Bounds of one call of `profiled`; what they leave out is estimated, and tried again by the next call."""

    seconds: float = 60.0
    memory_bytes: int | None = None
    """Of one op's inputs and outputs together; None stands for a quarter of what is free."""


def profiled(nodes: Sequence[Node], limits: ProfileLimits = ProfileLimits()) -> list[OpCost]:
    """Price each node by running its op on real tensors of the same layout; equal calls share one figure.

    Figures are kept in the process and on disk for each device, thread count and PyTorch. Ops that
    cannot be run alone, fail, or are beyond `limits` get the roofline's estimate, scaled by how far
    it was off on the ops that were run. Leaves generators, modes and the user's tensors as they were.
    """
    calls = [signature(node) for node in nodes]
    tables = {device: _table(device) for device in {call.device for call in calls if call} if at_hand(device)}
    _fill(tables, _distinct(calls), limits)
    known = [tables[call.device].costs.get(call.key) if call and call.device in tables else None for call in calls]
    return _complete(nodes, known)


def known_costs(device: torch.device) -> Mapping[str, OpCost | None]:
    """What calls on a device were measured to take before, by the key of a signature."""
    return _table(device).costs if at_hand(device) else {}


def may_run(call: Signature) -> bool:
    """Whether a call's tensors take little enough of what is free to be made once more, beside those of the model."""
    return call.total_bytes <= _free_bytes(call.device) // 4


@dataclass(frozen=True, slots=True)
class _Table:
    """Costs by signature for one environment; None for an op that fails when run alone."""

    environment: str
    costs: dict[str, OpCost | None]


_TABLES: dict[tuple[str, str], _Table] = {}
"""By the file they come from and the environment they hold in."""


def _table(device: torch.device) -> _Table:
    where = f"{environment(device)} | sources={_sources()}"
    path = cache_path("op-costs", where)
    if (str(path), where) not in _TABLES:
        _TABLES[str(path), where] = _Table(where, {**_read_costs(where)})
    return _TABLES[str(path), where]


def _distinct(calls: Iterable[Signature | None]) -> list[Signature]:
    return list({call.key: call for call in calls if call is not None}.values())


def _fill(tables: dict[torch.device, _Table], calls: list[Signature], limits: ProfileLimits) -> None:
    """Run what no table has, within `limits`, and save."""
    deadline = time.monotonic() + limits.seconds / 2  # reading the scratch takes no longer than the timing
    for device, table in tables.items():
        missing = [call for call in calls if call.device == device and call.key not in table.costs]
        memory_bytes = _free_bytes(device) // 4 if limits.memory_bytes is None else limits.memory_bytes
        missing = [call for call in missing if call.total_bytes <= memory_bytes]
        if missing:
            with plain_execution(device):
                table.costs.update(_measure(missing, device, deadline))
            measured = {key: cost for key, cost in table.costs.items() if cost is not None}
            _write_costs(table.environment, measured)


def _measure(calls: Sequence[Signature], device: torch.device, deadline: float) -> dict[str, OpCost | None]:
    """Time the calls one by one, then read the scratch of those that ran."""
    seconds: dict[str, float | None] = {}
    with phase("profiling operators", shown_alone=True) as tell:
        for number, call in enumerate(calls):
            if time.monotonic() > deadline:
                break
            tell(f"{number} of {len(calls)}")
            seconds[call.key] = time_call(call)
        ran = [call for call in calls if seconds.get(call.key) is not None]
        tell("their scratch memory")
        scratch = scratch_bytes(ran, device)
    costs: dict[str, OpCost | None] = {key: None for key, time in seconds.items() if time is None}
    for key, (workspace_bytes, storage_bytes) in scratch.items():
        costs[key] = OpCost(seconds[key] or 0.0, workspace_bytes, storage_bytes)
    return costs


def time_call(call: Signature) -> float | None:
    """Seconds of one run of `call`; None where it fails."""
    run = runnable(call)
    return None if run is None else least_seconds(run, call.device)


def _complete(nodes: Sequence[Node], known: list[OpCost | None]) -> list[OpCost]:
    """Fill what was not measured with the roofline, scaled by its median error where there is one."""
    gaps = [position for position, cost in enumerate(known) if cost is None]
    if not gaps:
        return [cost for cost in known if cost is not None]
    estimates = roofline(nodes)
    errors = [
        cost.seconds / max(estimate.seconds, 1e-9) for cost, estimate in zip(known, estimates, strict=True) if cost
    ]
    factor = statistics.median(errors) if errors else 1.0
    return [cost or OpCost(estimate.seconds * factor, 0) for cost, estimate in zip(known, estimates, strict=True)]


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        # what PyTorch's allocator holds and nobody uses is as good as free
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every platform
        return 4 * 2**30


@cache
def _sources() -> str:
    """A digest of what ops of our own are made of, and of how ops are measured."""
    digest = hashlib.sha256()
    for folder in (Path(kernels.__file__).parent, Path(__file__).parent):
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".h")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _read_costs(where: str) -> dict[str, OpCost]:
    entries = read_entries(cache_path("op-costs", where), _KIND, where)
    costs = {key: _read_cost(entry) for key, entry in entries.items()}
    return {key: cost for key, cost in costs.items() if cost is not None}


def _write_costs(where: str, costs: dict[str, OpCost]) -> None:
    """Add to the file: another process may have written to it meanwhile."""
    merged = {**_read_costs(where), **costs}
    entries = {key: [cost.seconds, cost.workspace_bytes, cost.storage_bytes] for key, cost in merged.items()}
    write_entries(cache_path("op-costs", where), _KIND, where, entries)


def _read_cost(entry: object) -> OpCost | None:
    match entry:
        case [float() as seconds, workspace, list() as storages] if 0 <= seconds < math.inf:
            numbers = [workspace, *storages]
            if all(type(number) is int and number >= 0 for number in numbers):
                return OpCost(seconds, numbers[0], tuple(numbers[1:]))
    return None
