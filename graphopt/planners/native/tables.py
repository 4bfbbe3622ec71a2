"""A problem as the arrays that the machine code reads: cpp/problem.h, field by field."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate, chain

import numpy as np

from graphopt.problem.problem import Problem

#: Fields of cpp/problem.h behind the seconds: one row of whole numbers each.
_ROWS = (
    *("workspace", "all_inputs", "recomputable", "repeatable", "keeps_turn"),
    *("size", "producer", "slot", "free", "output"),
    *("inputs_at", "inputs", "made_at", "made", "readers_at", "readers"),
)


class _Struct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("ops", "values", "outputs", "first_backward")),
        ("total_seconds", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("seconds", *_ROWS)),
    ]


class Tables:
    """The rows of one problem, which live as long as this does, and the address of the struct that names them."""

    def __init__(self, problem: Problem, held: frozenset[int]) -> None:
        ops, sizes, producer = problem.ops, [value.bytes for value in problem.values], problem.producer
        rows = _rows(problem, held, sizes)
        self._seconds = np.array([op.seconds for op in ops], dtype=np.float64)
        # One array for all rows: a problem of some ops is made in a tenth of a millisecond.
        self._numbers = np.array(list(chain.from_iterable(rows[name] for name in _ROWS)), dtype=np.int64)
        starts = accumulate((len(rows[name]) for name in _ROWS), initial=0)
        first = self._numbers.ctypes.data
        addresses = [first + 8 * start for start, _ in zip(starts, _ROWS, strict=False)]
        outputs = sum(producer[v] >= 0 for v in problem.outputs)
        counts = (len(ops), len(sizes), outputs, problem.first_backward)
        self._struct = _Struct(*counts, problem.seconds, self._seconds.ctypes.data, *addresses)
        self.address = ctypes.addressof(self._struct)


def _rows(problem: Problem, held: frozenset[int], sizes: list[int]) -> dict[str, Sequence[int]]:
    """Every row; resident values are left out of what is read."""
    ops, producer = problem.ops, problem.producer
    slot = [0] * len(sizes)
    for op in ops:
        for place, value in enumerate(op.outputs):
            slot[value] = place
    rows: dict[str, Sequence[int]] = {
        "workspace": [op.workspace_bytes for op in ops],
        "all_inputs": [len(op.inputs) for op in ops],
        "recomputable": [op.recomputable for op in ops],
        "repeatable": [op.recomputable and held.isdisjoint(op.outputs) for op in ops],
        "keeps_turn": [op.pinned or not op.recomputable for op in ops],
        "size": sizes,
        "producer": producer,
        "slot": slot,
        "free": [size > 0 and value not in held for value, size in enumerate(sizes)],
        "output": [v for v in problem.outputs if producer[v] >= 0],
    }
    read = [[v for v in op.inputs if producer[v] >= 0] for op in ops]
    for name, packed in (("inputs", read), ("made", [op.outputs for op in ops]), ("readers", problem.readers)):
        rows[f"{name}_at"] = list(accumulate(map(len, packed), initial=0))
        rows[name] = list(chain.from_iterable(packed))
    return rows
