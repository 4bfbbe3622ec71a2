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
    need: list[int] = _first_late_readers(study, end, alive).tolist()
    again: list[tuple[int, int]] = []
    for op_id in range(end - 1, -1, -1):
        before = need[op_id]
        if before < never:
            again.append((before, op_id))
            for value in reads[op_id]:
                if value not in alive and before < need[producer[value]]:
                    need[producer[value]] = before
    before_and_op = np.array(sorted(again), dtype=np.int64).reshape(-1, 2)
    return np.insert(np.arange(never), before_and_op[:, 0], before_and_op[:, 1])


def _first_late_readers(study: Study, end: int, alive: frozenset[int]) -> Ints:
    """For each op the first one from `end` on that reads of it what is not `alive`; the number of ops for none."""
    reader, value, maker = study.once(_reads_in_order)
    first = np.full(len(study.reads), len(study.reads), dtype=np.int64)
    is_alive = np.zeros(len(study.problem.values), dtype=np.bool_)
    is_alive[list(alive)] = True
    late = np.flatnonzero((reader >= end) & ~is_alive[value])[::-1]
    # Of several that are assigned to one place the last one stays: the first reader.
    first[maker[late]] = reader[late]
    return first


def _reads_in_order(study: Study) -> tuple[Ints, Ints, Ints]:
    """Each read of what an op makes, in the order of the ops that read: the reader, the value, and its maker."""
    reader = np.repeat(np.arange(len(study.reads)), [len(read) for read in study.reads])
    value = np.fromiter((v for read in study.reads for v in read), dtype=np.int64, count=len(reader))
    return reader, value, np.array(study.problem.producer, dtype=np.int64)[value]
