"""Where a forward pass can be cut: positions that few bytes cross."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.base.rounding import ceil_div
from graphopt.planners.native.arrays import Bools, Floats, Ints
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import lifetimes

#: Share of the kept bytes, to either side, within which a cut is among the narrowest, and by what factor.
WINDOW, NARROW = 1 / 24, 1.3


def turning_point(problem: Problem) -> int:
    """The op at which the forward ends.

    The flags say so where they split the ops in two; elsewhere it is where the most bytes are
    alive that are not outputs, which in a training step is the same place.
    """
    first = problem.first_backward
    if 0 < first < len(problem.ops) and all(op.backward for op in problem.ops[first:]):
        return first
    outputs = set(problem.outputs)
    change = np.zeros(len(problem.ops) + 1, dtype=np.int64)
    for value, start, end in lifetimes(problem, range(len(problem.ops))):
        if value not in outputs:
            change[start] += problem.values[value].bytes
            change[end + 1] -= problem.values[value].bytes
    return int(np.cumsum(change).argmax())


@dataclass(frozen=True)
class Forward:
    """The forward part of a problem, as the planners that cut it see it."""

    end: int
    #: For each position the bytes that ops before it hand to forward ops at or after it.
    crossing: Ints
    #: For each value the last forward op that reads it, or its producer; -1 outside the forward.
    last_forward: Ints
    #: For each value whether it is read after the forward (or is an output).
    read_later: Bools
    #: For each forward op the bytes it makes that the backward reads; hardly anything in the place of nothing.
    kept_bytes: Floats


def forward_part(problem: Problem) -> Forward:
    """Measure every position of the forward as a cut."""
    end = turning_point(problem)
    change = np.zeros(end + 2, dtype=np.int64)
    last_forward = np.full(len(problem.values), -1, dtype=np.int64)
    read_later = np.zeros(len(problem.values), dtype=np.bool_)
    read_later[list(problem.outputs)] = True
    kept_bytes = np.full(end, 1e-9)
    for value, maker in enumerate(problem.producer):
        if not 0 <= maker < end:
            continue
        readers = problem.readers[value]
        last = max((r for r in readers if r < end), default=maker)
        last_forward[value] = last
        read_later[value] |= bool(readers) and readers[-1] >= end
        if read_later[value]:
            kept_bytes[maker] += problem.values[value].bytes
        change[maker + 1] += problem.values[value].bytes
        change[last + 1] -= problem.values[value].bytes
    return Forward(end, np.cumsum(change)[: end + 1], last_forward, read_later, kept_bytes)


def cuts(forward: Forward, count: int) -> list[int]:
    """At most `count` positions that split the forward into parts of like weight.

    Around each of the ideal positions (equal shares of the bytes that the backward reads) the one
    with the fewest crossing bytes is taken.
    """
    share = np.cumsum(forward.kept_bytes) / forward.kept_bytes.sum()
    chosen: set[int] = set()
    edges = np.searchsorted(share, (np.arange(count + 1) + 0.5) / (count + 1)) + 1
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        window = forward.crossing[low : min(max(high, low + 1), forward.end)]
        if len(window):
            chosen.add(low + int(window.argmin()))
    return sorted(chosen - {0})


def border_values(problem: Problem, forward: Forward, positions: list[int]) -> set[int]:
    """Values that the forward hands over one of the given positions."""
    made = np.asarray(problem.producer)
    crosses = np.zeros(len(problem.values), dtype=np.bool_)
    for position in positions:
        crosses |= (made >= 0) & (made < position) & (forward.last_forward >= position)
    return set(np.flatnonzero(crosses).tolist())


def narrow_cuts(forward: Forward, most: int) -> list[int]:
    """At most `most` positions that few bytes cross for their part of the forward.

    Those of repeated blocks are alike, and so are those left where every second, or third, is taken.
    """
    share = np.concatenate([[0.0], np.cumsum(forward.kept_bytes) / forward.kept_bytes.sum()])[:-1]
    crossing = forward.crossing[: forward.end]
    found: list[int] = []
    low = np.searchsorted(share, share - WINDOW)
    high = np.searchsorted(share, share + WINDOW, side="right")
    near = np.searchsorted(share, share + 0.2 / most, side="right")
    back = np.searchsorted(share, share - 0.2 / most)
    last = 0
    for position in range(1, forward.end):
        around = crossing[low[position] : high[position]]
        if crossing[position] <= NARROW * around[around > 0].min(initial=crossing[position]):
            close = crossing[max(1, back[position]) : near[position]]
            if crossing[position] == close.min() and share[position] - share[last] >= 0.2 / most:
                found.append(position)
                last = position
    stride = ceil_div(len(found), most)
    return found[stride - 1 :: stride] if stride else []
