"""What can be done with one region: how many bytes it keeps, and what its backward then takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from graphopt.planners.chains.regions import Region, Regions
from graphopt.planners.moves.evict import descend, reach
from graphopt.planners.moves.fill import fill, fill_under
from graphopt.planners.schedules.layout import Ints
from graphopt.planners.schedules.spans import Spans
from graphopt.problem.problem import Problem

#: Steps from keeping all to keeping nothing, and the ratio of the peaks of schedules that keep least.
STEPS, RATIO = 8, 0.85


@dataclass(frozen=True)
class Option:
    """One way to run a region. Values and steps are the region's own."""

    #: What is kept from the forward for the backward, and its bytes beside what the next region is handed anyway.
    kept: frozenset[int]
    kept_bytes: int
    #: Peaks of the forward and of the backward.
    forward_bytes: int
    backward_bytes: int
    #: Time of what is computed again.
    seconds: float
    #: The backward, with what is computed again.
    steps: tuple[int, ...]


def options_of(regions: Regions) -> list[list[Option]]:
    """The options of every region; those of one kind share theirs, at the median of their times."""
    members: dict[tuple[object, ...], list[Region]] = {}
    kinds = [part.kind for part in regions.parts]
    for kind, part in zip(kinds, regions.parts, strict=True):
        members.setdefault(kind, []).append(part)
    solved = {kind: _solve(_at_median(parts)) for kind, parts in members.items()}
    return [solved[kind] for kind in kinds]


def _at_median(parts: Sequence[Region]) -> Region:
    seconds = zip(*([op.seconds for op in part.local.ops] for part in parts), strict=True)
    ops = tuple(replace(op, seconds=median(s)) for op, s in zip(parts[0].local.ops, seconds, strict=True))
    return replace(parts[0], local=replace(parts[0].local, ops=ops))


def _solve(region: Region) -> list[Option]:
    """Keep ever less at the turn; then, from there, lower the peak of the backward."""
    plain = range(len(region.local.ops))
    whole = _option(region, plain)
    # With the rest of the step so large, the highest step is the turn: only what is kept counts.
    line = Spans(_with_rest(region, 4 * Spans(region.local, plain).peak_bytes), plain)
    least = line.peak_bytes - whole.kept_bytes
    found = [whole]
    for share in range(STEPS - 1, -1, -1):
        target = least + whole.kept_bytes * share // STEPS
        if line.peak_bytes > target:
            reached = reach(line, target)
            if not reached:
                break
            line = fill_under(reached[-1], max(target, reached[-1].peak_bytes))
            found += [_option(region, step.op) for step in (*reached, line)]
    found += [_option(region, p.steps) for p in fill(line.problem, line.point(""), "")]
    lower = descend(region.local, line.op, "", RATIO)
    found += [_option(region, p.steps) for p in lower]
    return _undominated(found)


def _with_rest(region: Region, rest_bytes: int) -> Problem:
    ops = list(region.local.ops)
    ops[region.turn] = replace(ops[region.turn], workspace_bytes=rest_bytes)
    return replace(region.local, ops=tuple(ops))


def _option(region: Region, schedule: Sequence[int] | Ints) -> Option:
    problem, turn = region.local, region.turn
    spans = Spans(problem, schedule)
    at = int(np.flatnonzero(spans.op == turn)[0])
    alive = spans.cells.value[(spans.cells.step < at) & (spans.cells.last > at)]
    kept = frozenset(alive[spans.layout.producer[alive] < turn].tolist())
    return Option(
        kept,
        sum(problem.values[v].bytes for v in kept.difference(problem.ops[turn].inputs)),
        int(spans.memory[:at].max(initial=0)),
        int(spans.memory[at + 1 :].max(initial=0)),
        spans.seconds - problem.seconds,
        tuple(spans.op[at + 1 :].tolist()),
    )


def _undominated(options: Iterable[Option]) -> list[Option]:
    best: list[Option] = []
    for new in sorted(options, key=lambda o: (o.seconds, o.kept_bytes, o.backward_bytes)):
        if not any(b.kept_bytes <= new.kept_bytes and b.backward_bytes <= new.backward_bytes for b in best):
            best.append(new)
    return best
