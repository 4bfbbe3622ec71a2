"""Calls of the machine code: arrays in, arrays out."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.planners.native.anneal_round import AnnealRound
from graphopt.planners.native.arrays import Floats, Ints
from graphopt.planners.native.linear_programme import LinearProgramme
from graphopt.planners.native.tables import Tables
from graphopt.problem.problem import Problem


class CompiledLoops:
    """One problem's arrays, and the loops in C++ over them; see `loops.Loops`."""

    slowness = 1

    def __init__(self, loaded: ctypes.CDLL, problem: Problem, held: frozenset[int]) -> None:
        self._library, self._tables = loaded, Tables(problem, held)
        self._problem = ctypes.c_void_p(self._tables.address)

    def profile(self, schedule: Ints) -> tuple[Ints, int, float]:
        """See `loops.Loops`, as for all that follow."""
        memory, seconds = np.empty(len(schedule), dtype=np.int64), ctypes.c_double()
        peak = self._call("profile", *_row(schedule), _at(memory), ctypes.byref(seconds))
        return memory, peak, seconds.value

    def lower(self, schedule: Ints, target_bytes: int, moves: int, longest: int) -> Ints | None:
        """cpp/evict.cpp."""
        return self._taken(self._call("lower", *_row(schedule), *map(_whole, (target_bytes, moves, longest))))

    def fill(self, schedule: Ints, batches: int, known_peaks: Ints, known_seconds: Floats) -> tuple[Ints, Floats, Ints]:
        """cpp/fill.cpp."""
        count = len(schedule)
        peaks, seconds = np.empty(count, dtype=np.int64), np.empty(count)
        gone_at = np.full(count, np.iinfo(np.int64).max, dtype=np.int64)
        known = (_at(known_peaks), _at(known_seconds), _whole(len(known_peaks)))
        moves = self._call("fill", *_row(schedule), _whole(batches), *known, *map(_at, (peaks, seconds, gone_at)))
        return peaks[:moves].copy(), seconds[:moves].copy(), gone_at

    def fill_under(self, schedule: Ints, level_bytes: int) -> Ints:
        """cpp/fill_under.cpp."""
        length = self._call("fill_under", *_row(schedule), _whole(level_bytes))
        found = self._taken(length)
        assert found is not None
        return found

    def reorder(self, order: Ints, movable: Ints, passes: int) -> Ints:
        """cpp/reorder.cpp."""
        found = self._taken(self._call("reorder", *_row(order), *_row(movable), _whole(passes)))
        assert found is not None
        return found

    def walk(self, limit_bytes: int, /) -> Ints | None:
        """cpp/walk.cpp."""
        return self._taken(self._call("walk", _whole(limit_bytes)))

    def anneal(self, schedule: Ints, what: AnnealRound, /) -> tuple[Ints, float] | None:
        """cpp/anneal.cpp."""
        seconds = ctypes.c_double(what.best_seconds)
        counts = map(_whole, (what.budget_bytes, what.seed, what.length, what.moves))
        clock = ctypes.c_double(what.seconds_left)
        faster = self._taken(self._call("anneal", *_row(schedule), *counts, clock, ctypes.byref(seconds)))
        return None if faster is None else (faster, seconds.value)

    def prices(self, programme: LinearProgramme, steps: int, /) -> Floats | None:
        """cpp/prices.cpp."""
        found = np.empty(len(programme.limits))
        matrix = (_whole(len(programme.row)), *map(_at, (programme.row, programme.column, programme.factor)))
        rows = (_whole(len(programme.limits)), _at(programme.limits))
        columns = (_whole(len(programme.costs)), *map(_at, (programme.costs, programme.least)))
        self._library.graphopt_prices(*matrix, *rows, *columns, _whole(steps), _at(found))
        return found

    def min_cut(self, out_at: Ints, out: Ints, to: Ints, room: Ints) -> Sequence[bool]:
        """cpp/flow.cpp."""
        reached = np.empty(len(out_at) - 1, dtype=np.uint8)
        arrays: tuple[npt.NDArray[Any], ...] = (out_at, out, to, room, reached)
        self._library.graphopt_cut(_whole(len(reached)), *map(_at, arrays))
        sides: list[bool] = reached.view(np.bool_).tolist()
        return sides

    def _call(self, name: str, *arguments: object) -> int:
        call = getattr(self._library, f"graphopt_{name}")
        call.restype = ctypes.c_int64
        return int(call(self._problem, *arguments))

    def _taken(self, length: int) -> Ints | None:
        """The schedule that the last call found."""
        if length < 0:
            return None
        found = np.empty(length, dtype=np.int64)
        self._library.graphopt_take(_at(found))
        return found


def _at(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    """Good as long as somebody else holds the array."""
    return ctypes.c_void_p(array.__array_interface__["data"][0])


def _row(array: npt.NDArray[Any]) -> tuple[ctypes.c_void_p, ctypes.c_int64]:
    return _at(array), _whole(len(array))


def _whole(number: int) -> ctypes.c_int64:
    return ctypes.c_int64(number)
