"""Which values a step is sure to find made before it and read after it, or owed as outputs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np

from graphopt.planners.native.arrays import Bools
from graphopt.problem.problem import Problem

#: Values that are wanted across the first run of an op.
Wanted = Callable[[int], list[int]]


def wanted_in_order(problem: Problem) -> Wanted:
    """Where the first runs stand in the problem's own order."""
    made = np.array(problem.producer, dtype=np.int64)
    made[made < 0] = len(problem.ops)
    last = np.array([max(readers, default=-1) for readers in problem.readers], dtype=np.int64)
    last[list(problem.outputs)] = len(problem.ops)

    def wanted(step: int) -> list[int]:
        found: list[int] = np.flatnonzero((made < step) & (last > step)).tolist()
        return found

    return wanted


def wanted_in_any_order(problem: Problem) -> Wanted:
    """Where all that is known is that an op runs after those that it depends on."""
    before, after = _ancestors(problem), _descendants(problem)
    maker = np.array(problem.producer, dtype=np.int64)
    reader = np.array(list(chain.from_iterable(problem.readers)), dtype=np.int64)
    value = np.repeat(np.arange(len(problem.values)), [len(readers) for readers in problem.readers])
    output = np.zeros(len(problem.values), dtype=np.bool_)
    output[list(problem.outputs)] = True
    count = len(problem.ops)

    def wanted(step: int) -> list[int]:
        read = output.copy()
        read[value[_unpacked(after[step], count)[reader]]] = True
        found: list[int] = np.flatnonzero(read & (maker >= 0) & _unpacked(before[step], count)[maker]).tolist()
        return found

    return wanted


def _ancestors(problem: Problem) -> list[int]:
    """For each op the ops that it depends on, as the bits of a number."""
    found: list[int] = []
    for op in problem.ops:
        makers = {problem.producer[v] for v in op.inputs} - {-1}
        bits = 0
        for maker in makers:
            bits |= found[maker] | 1 << maker
        found.append(bits)
    return found


def _descendants(problem: Problem) -> list[int]:
    """For each op the ops that depend on it, as the bits of a number."""
    found = [0] * len(problem.ops)
    for op_id in range(len(problem.ops) - 1, -1, -1):
        readers = {r for v in problem.ops[op_id].outputs for r in problem.readers[v]}
        for reader in readers:
            found[op_id] |= found[reader] | 1 << reader
    return found


def _unpacked(bits: int, count: int) -> Bools:
    packed = np.frombuffer(bits.to_bytes(count // 8 + 1, "little"), dtype=np.uint8)
    return np.unpackbits(packed, bitorder="little", count=count).astype(np.bool_)
