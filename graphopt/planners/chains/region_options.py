"""What can be done with one region: how many bytes it keeps, and what its backward then takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from graphopt.planners.chains.regions import Region, Regions
from graphopt.planners.moves.evict import descend, reach
from graphopt.planners.moves.fill import fill, fill_under
from graphopt.planners.native.arrays import Ints
from graphopt.planners.schedules.memory_profile import in_own_order, profile_of
from graphopt.planners.study.study import Study
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import lifetimes

#: Steps from keeping all to keeping nothing, and the ratio of the peaks of schedules that keep least.
STEPS, RATIO = 8, 0.85


@dataclass(frozen=True)
class RegionOption:
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


def options_of(study: Study, regions: Regions) -> list[list[RegionOption]]:
    """The options of every region; those of one kind share theirs, at the median of their times."""
    members: dict[tuple[object, ...], list[Region]] = {}
    kinds = [part.kind for part in regions.parts]
    for kind, part in zip(kinds, regions.parts, strict=True):
        members.setdefault(kind, []).append(part)
    solved = {kind: _solve(study, _at_median(parts)) for kind, parts in members.items()}
    return [solved[kind] for kind in kinds]


def _at_median(parts: Sequence[Region]) -> Region:
    seconds = zip(*([op.seconds for op in part.local.ops] for part in parts), strict=True)
    ops = tuple(replace(op, seconds=median(s)) for op, s in zip(parts[0].local.ops, seconds, strict=True))
    return replace(parts[0], local=replace(parts[0].local, ops=ops))


def _solve(study: Study, region: Region) -> list[RegionOption]:
    """Keep ever less at the turn; then, from there, lower the peak of the backward."""
    alone = study.of(region.local)
    plain = in_own_order(alone)
    whole = _option(alone, region, plain.steps)
    # With the rest of the step so large, the highest step is the turn: only what is kept counts.
    line = in_own_order(study.of(_with_rest(region, 4 * plain.peak_bytes)))
    least = line.peak_bytes - whole.kept_bytes
    found = [whole]
    for share in range(STEPS - 1, -1, -1):
        target = least + whole.kept_bytes * share // STEPS
        if line.peak_bytes > target:
            reached = reach(line, target)
            if not reached:
                break
            line = fill_under(reached[-1], max(target, reached[-1].peak_bytes))
            found += [_option(alone, region, step.steps) for step in (*reached, line)]
    found += [_option(alone, region, p.steps) for p in fill(line.study, line.point(""), "")]
    found += [_option(alone, region, p.steps) for p in descend(alone, line.steps, "", RATIO)]
    return _undominated(found)


def _with_rest(region: Region, rest_bytes: int) -> Problem:
    ops = list(region.local.ops)
    ops[region.turn] = replace(ops[region.turn], workspace_bytes=rest_bytes)
    return replace(region.local, ops=tuple(ops))


def _option(alone: Study, region: Region, schedule: Ints) -> RegionOption:
    problem, turn = region.local, region.turn
    line, steps = profile_of(alone, schedule), schedule.tolist()
    at = steps.index(turn)
    kept = frozenset(
        value
        for value, first, last in lifetimes(problem, steps)
        if first < at < last and problem.producer[value] < turn
    )
    return RegionOption(
        kept,
        sum(problem.values[v].bytes for v in kept.difference(problem.ops[turn].inputs)),
        int(line.live_bytes[:at].max(initial=0)),
        int(line.live_bytes[at + 1 :].max(initial=0)),
        line.seconds - problem.seconds,
        tuple(steps[at + 1 :]),
    )


def _undominated(options: Iterable[RegionOption]) -> list[RegionOption]:
    best: list[RegionOption] = []
    for new in sorted(options, key=lambda o: (o.seconds, o.kept_bytes, o.backward_bytes)):
        if not any(b.kept_bytes <= new.kept_bytes and b.backward_bytes <= new.backward_bytes for b in best):
            best.append(new)
    return best
