"""From a schedule downwards: at the steps over a target, free values between two reads and compute them again.

A schedule is seen as intervals for which values are retained, as in Bartan et al., Moccasin (ICML 2023),
section 2; here any number of them a value, and a greedy in the place of constraint programming.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.planners.curves.curve import CurvePoint
from graphopt.planners.moves.fill import fill_under
from graphopt.planners.native.arrays import Ints
from graphopt.planners.schedules.floor import practical_floor
from graphopt.planners.schedules.memory_profile import MemoryProfile, profile_of
from graphopt.planners.study.study import Study

#: Ops that one eviction may ask to run again, and where the lowest of all peaks is sought.
LONGEST, LONGEST_AT_LOWEST = 25, (25, 50)
#: Attempts at one target, how many of them in a row may lower nothing, and the seconds, in those of a
#: step, beyond which going on is hopeless.
ATTEMPTS, PATIENCE, GIVE_UP = 12, 2, 3.0


def lower(line: MemoryProfile, target_bytes: int, moves: int, longest: int = LONGEST) -> MemoryProfile | None:
    """The schedule with up to `moves` more evictions at steps over `target_bytes`; None where none would help."""
    lowered = line.study.loops.lower(line.steps, target_bytes, moves, longest)
    return None if lowered is None else profile_of(line.study, lowered)


def descend(
    study: Study,
    schedule: Sequence[int] | Ints,
    planner: str,
    ratio: float,
    until: int = 0,
    nearer: int = 0,
    longest: int = LONGEST,
) -> list[CurvePoint]:
    """Schedules of ever less memory down to `until` bytes, each target `ratio` of the peak before.

    What fits again under a target once it is reached is kept again. Up to `nearer` times, where a
    target is too far, one nearer by is tried.
    """
    line, floor = profile_of(study, schedule), practical_floor(study)
    found: list[CurvePoint] = []
    least = line.peak_bytes
    while least > max(floor, until):
        target = max(int(least * ratio), floor)
        reached = reach(line, target, longest)
        found.extend(step.point(planner) for step in reached)
        if reached and reached[-1].peak_bytes <= target:
            line = fill_under(reached[-1], target)
            found.append(line.point(planner))
        elif nearer:
            line = reached[-1] if reached else line
            ratio, nearer = 1 - (1 - ratio) / 3, nearer - 1
        else:
            break
        least = line.peak_bytes
    return found


def reach(line: MemoryProfile, target_bytes: int, longest: int = LONGEST) -> list[MemoryProfile]:
    """Schedules of ever less memory, the last one under `target_bytes` if that can be reached."""
    problem, least = line.study.problem, line.peak_bytes
    moves = 8 + len(problem.ops) // 20
    found: list[MemoryProfile] = []
    patience = PATIENCE
    for _ in range(ATTEMPTS):
        hopeless = not patience or line.seconds > GIVE_UP * problem.seconds
        lowered = None if hopeless else lower(line, target_bytes, moves, longest)
        if lowered is None:
            break
        line = lowered
        patience -= 1
        if line.peak_bytes < least:
            least, patience = line.peak_bytes, PATIENCE
            found.append(line)
            if least <= target_bytes:
                break
    return found
