"""A training problem as a chain: stages of the forward, each with the part of the backward that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from graphopt.planners.cutpoints import Forward, cuts, forward_part
from graphopt.planners.replay import pinned_values
from graphopt.problem import Problem
from graphopt.schedule import simulate

#: A value that crosses more cuts than this is kept: recomputing it would tie distant stages together.
LONGEST_CROSSING = 2
#: The dynamic programme takes time in the cube of this.
MOST_STAGES = 64

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stages:
    """What the chain's dynamic programme sees of a problem; arrays have one entry a stage."""

    end: int
    seconds: Floats
    #: Bytes handed over at a stage's beginning; bytes its own backward reads.
    border: Floats
    saved: Floats
    #: Bytes that running a stage needs, forward, and backward with its own values there.
    forward_bytes: Floats
    backward_bytes: Floats
    border_values: tuple[frozenset[int], ...]
    saved_values: tuple[frozenset[int], ...]
    backward_ops: tuple[range, ...]
    pinned: frozenset[int]

    def most_bytes(self) -> float:
        """More than enough for every border and the widest stage, less than what keeping all takes."""
        widest = float(max(self.forward_bytes.max(), self.backward_bytes.max()))
        return max(1.0, 1.5 * (widest + float(self.border.sum())))


def stages_of(problem: Problem) -> Stages | None:
    """Cut `problem` into stages; None where its forward is too short to cut."""
    forward = forward_part(problem)
    positions = cuts(problem, forward, min(MOST_STAGES, max(1, forward.end // 6)))
    if forward.end >= len(problem.ops) or not positions:
        return None
    edges = [0, *positions, forward.end]
    border_values, saved_values, pinned = _shares(problem, forward, positions)
    regions = _backward_regions(problem, forward, saved_values)
    size = [v.bytes for v in problem.values]
    saved = np.array([sum(size[v] for v in values) for values in saved_values], dtype=np.float64)
    forward_bytes, backward_bytes = _needs(problem, forward, edges, regions, pinned)
    return Stages(
        end=forward.end,
        seconds=np.array([sum(op.seconds for op in problem.ops[a:b]) for a, b in pairwise(edges)]),
        border=np.array([sum(size[v] for v in values) for values in border_values], dtype=np.float64),
        saved=saved,
        forward_bytes=forward_bytes,
        backward_bytes=backward_bytes + saved,
        border_values=tuple(map(frozenset, border_values)),
        saved_values=tuple(map(frozenset, saved_values)),
        backward_ops=regions,
        pinned=frozenset(pinned),
    )


def _shares(
    problem: Problem, forward: Forward, positions: list[int]
) -> tuple[list[set[int]], list[set[int]], set[int]]:
    """Values that enter each stage, values of each that the backward reads, and values kept throughout."""
    made = np.asarray(problem.producer)
    first = np.searchsorted(positions, made, side="right")
    last = np.searchsorted(positions, forward.last_forward, side="right")
    inside = set(np.flatnonzero((made >= 0) & (made < forward.end)).tolist())
    far = set(np.flatnonzero(last - first > LONGEST_CROSSING).tolist())
    pinned = inside & (far | pinned_values(problem) | set(problem.outputs))
    border: list[set[int]] = [set() for _ in range(len(positions) + 1)]
    saved: list[set[int]] = [set() for _ in range(len(positions) + 1)]
    for value in inside - pinned:
        for stage in range(int(first[value]) + 1, int(last[value]) + 1):
            border[stage].add(value)
        if forward.read_later[value]:
            saved[int(first[value])].add(value)
    return border, saved, pinned


def _backward_regions(problem: Problem, forward: Forward, saved: list[set[int]]) -> tuple[range, ...]:
    """Consecutive ranges of backward ops, from the last stage's to the first's."""
    starts = np.zeros(len(saved) + 1, dtype=np.int64)
    starts[0] = len(problem.ops)
    entry = forward.end
    for stage in range(len(saved) - 1, -1, -1):
        reads = [next((r for r in problem.readers[v] if r >= forward.end), entry) for v in saved[stage]]
        if reads and stage < len(saved) - 1:
            # A quarter of the first reads may come early: a mask or a skip that is read out of turn.
            entry = max(entry, int(np.percentile(reads, 25)))
        starts[stage + 1] = entry
    return tuple(range(int(starts[stage + 1]), int(starts[stage])) for stage in range(len(saved)))


def _needs(
    problem: Problem, forward: Forward, edges: list[int], regions: tuple[range, ...], pinned: set[int]
) -> tuple[Floats, Floats]:
    """Bytes beside the borders that a stage's forward and backward take, checkpoints apart."""
    live = simulate(problem, range(len(problem.ops))).live_bytes.astype(np.float64)
    size, producer = problem.values, problem.producer
    change = np.zeros(len(problem.ops) + 1)
    for value, maker in enumerate(producer):
        if not 0 <= maker < forward.end:
            continue
        readers = problem.readers[value]
        last = len(problem.ops) - 1 if value in problem.outputs else (readers[-1] if readers else maker)
        if value in pinned:
            continue
        # Before the turn a value counts while the forward needs it, after it not at all: the stage's
        # own saved values are added by the programme.
        stop = min(last, int(forward.last_forward[value]))
        change[stop + 1] += size[value].bytes
        change[last + 1] -= size[value].bytes
    rest = live - np.cumsum(change)[:-1]
    forward_bytes = np.array([rest[a:b].max(initial=0) for a, b in pairwise(edges)])
    backward_bytes = np.array([max((rest[k] for k in region), default=0.0) for region in regions])
    return forward_bytes, backward_bytes
