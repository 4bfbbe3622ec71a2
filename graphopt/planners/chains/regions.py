"""A training problem in regions: parts of the forward, each with the part of the backward that reads it.

Each region is a small problem of its own. Regions that are equal but for names and times are of one
kind and are solved once, as in Zhao et al., Rockmate (ICML 2023), section 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from graphopt.planners.chains.cutpoints import Forward, forward_part, narrow_cuts
from graphopt.planners.native.arrays import Ints
from graphopt.planners.study.study import Study
from graphopt.problem.problem import Op, Problem, Value


@dataclass(frozen=True)
class Region:
    """Some forward ops in a row and the backward ops that go with them, as a problem of its own.

    In `local` the forward ops come first, then `turn`, one op that stands for all the rest of the
    step, then the backward ops. `ops` and `values` say which of the whole problem's each one is, and
    -1 for the turn.
    """

    local: Problem
    turn: int
    ops: tuple[int, ...]
    values: tuple[int, ...]

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for regions that differ in names and times only."""
        ops = tuple((op.workspace_bytes, op.inputs, op.outputs, op.recomputable) for op in self.local.ops)
        return self.turn, self.local.values, ops, self.local.outputs


@dataclass(frozen=True)
class Regions:
    """The regions of a problem, first to last, and what crosses from one to the next."""

    #: The op at which the forward ends.
    end: int
    #: Values that are never freed.
    held: frozenset[int]
    #: What each region and those after it read, forward or backward, of those before it.
    border: tuple[frozenset[int], ...]
    parts: tuple[Region, ...]
    #: Bytes that are there whatever is chosen: in a region's backward, and as it begins.
    backward_base: Ints
    entry_base: Ints


def regions_of(study: Study, most: int) -> Regions | None:
    """At most `most` + 1 regions; None where the forward has no place to cut."""
    problem, held = study.problem, study.held
    forward = forward_part(problem)
    if not 0 < forward.end < len(problem.ops):
        return None
    positions = narrow_cuts(forward, most)
    if not positions:
        return None
    edges = [0, *positions, forward.end]
    ranges = [
        (range(a, b), again)
        for (a, b), again in zip(pairwise(edges), _backwards(problem, forward, positions), strict=True)
    ]
    place = [0] * len(problem.ops)
    for number, (first, second) in enumerate(ranges):
        for op_id in (*first, *second):
            place[op_id] = number
    border = _borders(problem, forward.end, held, place, len(ranges))
    parts = tuple(_region(problem, held, first, second, place) for first, second in ranges)
    return Regions(forward.end, held, border, parts, *_bases(problem, forward.end, held, ranges))


def _backwards(problem: Problem, forward: Forward, positions: list[int]) -> list[range]:
    """For each region some backward ops in a row; those of the last region come first.

    They are divided where the fewest bytes are read on the wrong side: before the division, of what
    an earlier region made, or after it, of what a later one made. What the forward hands over at a
    cut may be read on both.
    """
    end, count = forward.end, len(problem.ops)
    made = np.asarray(problem.producer)
    late = np.flatnonzero((made >= 0) & (made < end) & forward.read_later)
    reads = [[r for r in problem.readers[v] if r >= end] for v in late.tolist()]
    late = late[[bool(r) for r in reads]]
    first = np.array([r[0] for r in reads if r], dtype=np.int64)
    last = np.array([r[-1] for r in reads if r], dtype=np.int64)
    size = np.array([problem.values[v].bytes for v in late.tolist()], dtype=np.float64)
    maker, handed = made[late], forward.last_forward[late]
    starts, start = [count], end
    for position in reversed(positions):
        before, after = (maker < position) & (handed < position), maker >= position
        wrong = np.cumsum(np.bincount(first[before] + 1, size[before], count + 2).astype(np.float64))
        wrong += np.cumsum(np.bincount(last[after], size[after], count + 2)[::-1])[::-1]
        start += int(wrong[start:count].argmin()) if start < count else 0
        starts.append(start)
    return [range(b, a) for a, b in pairwise([count, *reversed(starts[1:]), end])]


def _borders(
    problem: Problem, end: int, held: frozenset[int], place: list[int], count: int
) -> tuple[frozenset[int], ...]:
    """A value crosses every border up to the last region that reads it: long skips cross many."""
    border: list[set[int]] = [set() for _ in range(count)]
    for value, maker in enumerate(problem.producer):
        if 0 <= maker < end and value not in held:
            last = max((place[r] for r in problem.readers[value]), default=0)
            for number in range(place[maker] + 1, last + 1):
                border[number].add(value)
    return tuple(map(frozenset, border))


def _bases(problem: Problem, end: int, held: frozenset[int], ranges: list[tuple[range, range]]) -> tuple[Ints, Ints]:
    """Bytes of what is never freed, and of gradients that were there before a region's backward and outlive it."""
    count, outputs = len(problem.ops), set(problem.outputs)
    starts = np.array([second.start for _, second in ranges])
    stops = np.array([second.stop for _, second in ranges])
    outlive = np.zeros(len(ranges), dtype=np.int64)
    #: What was made before each op and stays until after it: of the forward, of the backward.
    change = np.zeros((2, count + 2), dtype=np.int64)
    for value, maker in enumerate(problem.producer):
        if maker < 0 or (maker < end and value not in held):
            continue
        size = problem.values[value].bytes
        last = count if value in outputs else max(problem.readers[value], default=maker)
        row = int(maker >= end)
        change[row, maker + 1] += size
        change[row, last + 1] -= size
        if row:
            outlive[(starts > maker) & (stops <= last)] += size
    stays, gradients = np.cumsum(change, axis=1)
    outlive += [int(stays[second.start : second.stop].max(initial=0)) for _, second in ranges]
    return outlive, stays[starts] + gradients[starts]


def _region(problem: Problem, held: frozenset[int], first: range, second: range, place: list[int]) -> Region:
    """The problem of one region alone."""
    ops, producer, readers = problem.ops, problem.producer, problem.readers
    number = place[first.start]
    values: dict[int, int] = {}

    def local(ids: Iterable[int]) -> tuple[int, ...]:
        return tuple([values.setdefault(v, len(values)) for v in ids])

    def localised(op_id: int, backward: bool) -> Op:
        op = ops[op_id]
        return Op("", op.seconds, op.workspace_bytes, local(op.inputs), local(op.outputs), backward, op.recomputable)

    forward = [localised(op_id, False) for op_id in first]
    leaving = [v for i in first for v in ops[i].outputs if v not in held and any(place[r] > number for r in readers[v])]
    # Gradients that come from the regions after this one and end here.
    arriving = dict.fromkeys(
        v
        for i in second
        for v in ops[i].inputs
        if first.stop <= producer[v] < second.start
        and v not in held
        and place[producer[v]] > number
        and ops[producer[v]].backward
        and readers[v][-1] < second.stop
    )
    turn = Op("", 0.0, 0, local(leaving), local(arriving), True, False)
    backward = [localised(op_id, True) for op_id in second]
    outputs = [v for i in second for v in ops[i].outputs if v in held or any(r not in second for r in readers[v])]
    # What else is held counts as there already.
    own = set(outputs)
    sizes = tuple(Value(0 if v in held and v not in own else problem.values[v].bytes) for v in values)
    whole = Problem(sizes, (*forward, turn, *backward), local(outputs))
    return Region(whole, len(forward), (*first, -1, *second), tuple(values))
