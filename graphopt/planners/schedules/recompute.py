"""Schedules from a choice of what to keep: all else is computed again just before it is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from graphopt.planners.native.arrays import Ints
from graphopt.planners.study.study import Study


def missing_ops(study: Study, wanted: Iterable[int], alive: set[int]) -> list[int]:
    """Ops to run, in order, so that all `wanted` values are there, given those that are `alive`."""
    producer, reads = study.problem.producer, study.reads
    needed: set[int] = set()
    stack = [v for v in wanted if producer[v] >= 0 and v not in alive]
    while stack:
        maker = producer[stack.pop()]
        if maker not in needed:
            needed.add(maker)
            stack.extend(reads[maker] - alive)
    return sorted(needed)


def recompute_once(study: Study, end: int, kept: Collection[int]) -> Ints:
    """Run the forward up to op `end`, keep `kept`, then compute what is missing once, when it is first read.

    This is what segment checkpointing (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016)
    and PyTorch's partitioner both emit; they differ in how `kept` is chosen.
    """
    producer, reads, alive = study.problem.producer, study.reads, study.held.union(kept)
    never = len(reads)
    # For each op the first one from `end` on that needs it, be it through what is computed again for that one.
    need = [never] * never
    for op_id in range(never - 1, end - 1, -1):
        for value in reads[op_id]:
            if value not in alive:
                need[producer[value]] = op_id
    again: list[tuple[int, int]] = []
    for op_id in range(end - 1, -1, -1):
        before = need[op_id]
        if before < never:
            again.append((before, op_id))
            for value in reads[op_id]:
                if value not in alive and before < need[producer[value]]:
                    need[producer[value]] = before
    schedule, reached = list[int](), 0
    for before, op_id in sorted(again):
        schedule.extend(range(reached, before))
        schedule.append(op_id)
        reached = before
    schedule.extend(range(reached, never))
    return np.array(schedule, dtype=np.int64)
