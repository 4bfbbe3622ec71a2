"""A problem as the arrays that the machine code reads: cpp/problem.h, field by field."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from graphopt.planners.replay import held_values, pinned_values
from graphopt.problem import Problem

Array = npt.NDArray[np.int64] | npt.NDArray[np.float64] | npt.NDArray[np.uint8]

_SCALARS = ("ops", "values", "outputs")
_ARRAYS = (
    *("seconds", "workspace", "all_inputs", "recomputable", "repeatable"),
    *("size", "producer", "slot", "free", "fixed", "pinned", "output"),
    *("inputs_at", "inputs", "made_at", "made", "readers_at", "readers"),
)


class _Struct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _SCALARS),
        ("total_seconds", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
    ]


class Tables:
    """The arrays of one problem, which live as long as this does, and the address of the struct that names them."""

    def __init__(self, problem: Problem) -> None:
        held, pinned = held_values(problem), pinned_values(problem)
        ops, producer = problem.ops, problem.producer
        output = [v for v in problem.outputs if producer[v] >= 0]
        inputs = [[v for v in op.inputs if producer[v] >= 0] for op in ops]
        slot = [0] * len(problem.values)
        for op in ops:
            for place, value in enumerate(op.outputs):
                slot[value] = place
        sizes = [value.bytes for value in problem.values]
        self._arrays: dict[str, Array] = {
            "seconds": np.array([op.seconds for op in ops], dtype=np.float64),
            "workspace": _ints(op.workspace_bytes for op in ops),
            "all_inputs": _ints(len(op.inputs) for op in ops),
            "recomputable": _flags(op.recomputable for op in ops),
            "repeatable": _flags(op.recomputable and held.isdisjoint(op.outputs) for op in ops),
            "size": _ints(sizes),
            "producer": _ints(producer),
            "slot": _ints(slot),
            "free": _flags(size > 0 and v not in held for v, size in enumerate(sizes)),
            "fixed": _marked(len(sizes), held.union(problem.outputs)),
            "pinned": _marked(len(sizes), pinned),
            "output": _ints(output),
        }
        for name, rows in (("inputs", inputs), ("made", [op.outputs for op in ops]), ("readers", problem.readers)):
            self._arrays[f"{name}_at"], self._arrays[name] = _packed(rows)
        self._struct = _Struct(
            len(ops),
            len(sizes),
            len(output),
            problem.seconds,
            *(self._arrays[name].ctypes.data for name in _ARRAYS),
        )
        self.address = ctypes.addressof(self._struct)


def _ints(numbers: Iterable[int]) -> npt.NDArray[np.int64]:
    return np.array(list(numbers), dtype=np.int64)


def _flags(answers: Iterable[bool]) -> npt.NDArray[np.uint8]:
    return np.array(list(answers), dtype=np.uint8)


def _marked(count: int, numbers: Iterable[int]) -> npt.NDArray[np.uint8]:
    flags = np.zeros(count, dtype=np.uint8)
    flags[list(numbers)] = 1
    return flags


def _packed(rows: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each row begins, and the last one ends; the rows one behind the other."""
    at = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=at[1:])
    return at, _ints(v for row in rows for v in row)
