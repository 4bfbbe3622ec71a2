"""What can be done with one region: how many bytes it keeps, and what its backward then takes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from graphopt.planners.chains.regions import Region, Regions
from graphopt.planners.curves.curve import CurvePoint
from graphopt.planners.moves.evict import descend, reach
from graphopt.planners.moves.fill import fill, fill_under
from graphopt.planners.schedules.memory_profile import in_own_order, profile_of
from graphopt.planners.study.study import Study
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import lifetimes

#: Steps from keeping all to keeping nothing, and the ratio of the peaks of schedules that keep least.
STEPS, RATIO = 8, 0.85
#: Steps of all schedules of one trajectory that are measured; of more, every second schedule is, or third, and so on.
#: A region of 2,400 ops has 4 million, one of 50,000 thousands of millions: more than the 300 slots of the programme
#: can tell apart.
MEASURED_STEPS = 2**23


@dataclass(frozen=True)
class RegionOption:
    """One way to run a region; the options of one trajectory share its arrays."""

    #: Bytes of what is kept from the forward for the backward, beside what the next region is handed anyway.
    kept_bytes: int
    #: Peaks of the forward and of the backward.
    forward_bytes: int
    backward_bytes: int
    #: Time of what is computed again.
    seconds: float
    #: The schedule of the region's own ops.
    point: CurvePoint


def kept_of(region: Region, option: RegionOption) -> frozenset[int]:
    """What an option keeps from the forward for the backward, as the region's own values."""
    steps, producer = option.point.steps.tolist(), region.local.producer
    at = steps.index(region.turn)
    alive = (value for value, first, last in lifetimes(region.local, steps) if first < at < last)
    return frozenset(value for value in alive if producer[value] < region.turn)


def backward_of(region: Region, option: RegionOption) -> list[int]:
    """An option's backward, with what is computed again, as the region's own ops."""
    steps: list[int] = option.point.steps.tolist()
    return steps[steps.index(region.turn) + 1 :]


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
    whole = _option(alone, region, plain.point(""))
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
            found += [_option(alone, region, step.point("")) for step in (*reached, line)]
    found += [_option(alone, region, p) for p in _apart(fill(line.study, line.point(""), ""), len(line.steps))]
    found += [_option(alone, region, p) for p in descend(alone, line.steps, "", RATIO)]
    return _undominated(found)


def _apart(trajectory: list[CurvePoint], steps: int) -> list[CurvePoint]:
    """The trajectory's last point and, before it, as many at equal distances as there is time to measure."""
    stride = 1 + len(trajectory) * steps // MEASURED_STEPS
    return trajectory[::-stride][::-1]


def _with_rest(region: Region, rest_bytes: int) -> Problem:
    ops = list(region.local.ops)
    ops[region.turn] = replace(ops[region.turn], workspace_bytes=rest_bytes)
    return replace(region.local, ops=tuple(ops))


def _option(alone: Study, region: Region, point: CurvePoint) -> RegionOption:
    """While the turn runs, what is alive beside what it reads and makes is what was kept for the backward."""
    problem, turn = region.local, region.turn
    line = profile_of(alone, point.steps)
    at = int((line.steps == turn).argmax())
    own = (v for v in (*problem.ops[turn].inputs, *problem.ops[turn].outputs) if problem.producer[v] >= 0)
    return RegionOption(
        int(line.live_bytes[at]) - problem.ops[turn].workspace_bytes - sum(problem.values[v].bytes for v in own),
        int(line.live_bytes[:at].max(initial=0)),
        int(line.live_bytes[at + 1 :].max(initial=0)),
        line.seconds - problem.seconds,
        point,
    )


def _undominated(options: Iterable[RegionOption]) -> list[RegionOption]:
    """Those for which no faster one keeps as little with as low a backward, from the fastest on."""
    best: list[RegionOption] = []
    # What the best take: ever more kept, with an ever lower backward.
    kept: list[int] = []
    backward: list[int] = []
    for new in sorted(options, key=lambda o: (o.seconds, o.kept_bytes, o.backward_bytes)):
        place = bisect_right(kept, new.kept_bytes)
        if place and backward[place - 1] <= new.backward_bytes:
            continue
        best.append(new)
        first = bisect_left(kept, new.kept_bytes)
        end = first
        while end < len(kept) and backward[end] >= new.backward_bytes:
            end += 1
        kept[first:end], backward[first:end] = [new.kept_bytes], [new.backward_bytes]
    return best
