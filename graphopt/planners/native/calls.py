"""Calls of the machine code: arrays in, arrays out."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.planners.native.build import library
from graphopt.planners.native.tables import Tables
from graphopt.problem.problem import Problem

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
#: Of any kind of number.
Array = npt.NDArray[Any]

#: Bytes and counts beyond this are not exact in floating point, as Python's whole numbers are.
MOST_BYTES = 1 << 53


def native_for(problem: Problem) -> Native | None:
    """The machine code for a problem; None where there is none, or where its numbers do not fit."""
    found = library()
    if found is None:
        return None
    kept = problem.__dict__
    if "native" not in kept:
        # However often it recomputes, a schedule never has more alive than all values at once.
        workspace_bytes = max((op.workspace_bytes for op in problem.ops), default=0)
        total = sum(value.bytes for value in problem.values) + workspace_bytes
        kept["native"] = Native(problem) if total < MOST_BYTES else None
    native: Native | None = kept["native"]
    return native


class Native:
    """One problem's arrays, and what can be asked of them."""

    def __init__(self, problem: Problem) -> None:
        loaded = library()
        assert loaded is not None
        self._library, self._tables = loaded, Tables(problem)
        self._problem = ctypes.c_void_p(self._tables.address)
        self._values = len(problem.values)

    def profile(self, schedule: Ints) -> tuple[Ints, int, float]:
        """Bytes at each step, the peak, and the seconds."""
        memory, seconds = np.empty(len(schedule), dtype=np.int64), ctypes.c_double()
        peak = self._call("profile", *_row(schedule), _at(memory), ctypes.byref(seconds))
        return memory, peak, seconds.value

    def lower(self, schedule: Ints, target: int, moves: int, longest: int) -> Ints | None:
        """See `evict.lower`."""
        return self._taken(self._call("lower", *_row(schedule), *map(_whole, (target, moves, longest))))

    def fill_under(self, schedule: Ints, level: int) -> Ints | None:
        """See `fill.fill_under`; None where nothing goes."""
        length = self._call("fill_under", *_row(schedule), _whole(level))
        return self._taken(length if length < len(schedule) else -1)

    def fill(self, schedule: Ints, batches: int, peaks: Ints, seconds: Floats) -> tuple[Ints, Floats, Ints]:
        """Peak and seconds after each move, and the move at which each step went; `peaks` and `seconds` are known."""
        count = len(schedule)
        found_peaks, found_seconds = np.empty(count, dtype=np.int64), np.empty(count)
        gone_at = np.full(count, np.iinfo(np.int64).max, dtype=np.int64)
        known = (_at(peaks), _at(seconds), _whole(len(peaks)))
        results = map(_at, (found_peaks, found_seconds, gone_at))
        moves = self._call("fill", *_row(schedule), _whole(batches), *known, *results)
        return found_peaks[:moves].copy(), found_seconds[:moves].copy(), gone_at

    def walk(self, limit: int) -> Ints | None:
        """See `walk.walk`."""
        return self._taken(self._call("walk", _whole(limit)))

    def recompute_once(self, end: int, alive: Iterable[int]) -> Ints:
        """See `replay_once.recompute_once`; those that are `alive` at the `end` of the forward."""
        return self._replayed("recompute_once", end, alive)

    def perform(self, end: int, alive: Iterable[int], actions: Ints) -> Ints:
        """See `chain_actions.performed`."""
        return self._replayed("perform", end, alive, *_row(actions))

    def _replayed(self, name: str, end: int, alive: Iterable[int], *arguments: object) -> Ints:
        flags = np.zeros(self._values, dtype=np.uint8)
        flags[list(alive)] = 1
        found = self._taken(self._call(name, _whole(end), _at(flags), *arguments))
        assert found is not None
        return found

    def settle(self, fixed: Sequence[Array], peak: int, state: Sequence[Ints], movable: Ints, passes: int) -> None:
        """See `reorder_moves.settle`: what does not change of an ordering, and its state, which does."""
        self._call("settle", *map(_at, fixed), _whole(peak), *map(_at, state), *_row(movable), _whole(passes))

    def anneal(
        self, schedule: Ints, budget: int, rng: random.Random, length: int, moves: int, best: float, seconds_left: float
    ) -> tuple[Ints, float] | None:
        """The first `moves` of a round of `length`: the best schedule that is faster than `best`, and its seconds."""
        version, words, spare = rng.getstate()
        state, seconds = np.array(words, dtype=np.uint32), ctypes.c_double(best)
        normal, has_normal = ctypes.c_double(spare or 0.0), ctypes.c_uint8(spare is not None)
        generator = (_at(state), ctypes.byref(normal), ctypes.byref(has_normal))
        numbers = (_whole(length), _whole(moves), ctypes.c_double(seconds_left), ctypes.byref(seconds))
        found = self._taken(self._call("anneal", *_row(schedule), _whole(budget), *generator, *numbers))
        rng.setstate((version, tuple(state.tolist()), normal.value if has_normal.value else None))
        return None if found is None else (found, seconds.value)

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


def cut(out_at: Ints, out: Ints, to: Ints, room: Ints) -> list[bool] | None:
    """See `mincut_flow.Network.source_side`; `room` is changed. None where there is no machine code."""
    loaded = library()
    if loaded is None:
        return None
    reached = np.empty(len(out_at) - 1, dtype=np.uint8)
    arrays: tuple[Array, ...] = (out_at, out, to, room, reached)
    loaded.graphopt_cut(_whole(len(reached)), *map(_at, arrays))
    sides: list[bool] = reached.view(np.bool_).tolist()
    return sides


def _at(array: Array) -> ctypes.c_void_p:
    """Good as long as somebody else holds the array."""
    return ctypes.c_void_p(array.__array_interface__["data"][0])


def _row(array: Array) -> tuple[ctypes.c_void_p, ctypes.c_int64]:
    return _at(array), _whole(len(array))


def _whole(number: int) -> ctypes.c_int64:
    return ctypes.c_int64(number)
