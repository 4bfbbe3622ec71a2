"""Recompute a little earlier, where less is alive: the latest moment is not always the cheapest one.

What a backward op reads is computed again just before it; where gradients have piled up by then,
a few steps earlier the peak of that recomputation is lower.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.planners.schedules.memory_profile import profile_of
from graphopt.planners.study.study import Study

#: How many steps earlier are tried, and how many moves are made.
FARTHEST, MOVES = 24, 60


def _level(study: Study, schedule: Sequence[int]) -> tuple[int, int, int]:
    """Peak, number of steps at it, and the first of them."""
    line = profile_of(study, schedule)
    return line.peak_bytes, int((line.live_bytes == line.peak_bytes).sum()), int(line.live_bytes.argmax())


def _recomputed(schedule: list[int]) -> list[bool]:
    """For each step whether its op has run before."""
    seen: set[int] = set()
    again = []
    for op_id in schedule:
        again.append(op_id in seen)
        seen.add(op_id)
    return again


def _group(again: list[bool], step: int) -> tuple[int, int]:
    """First and last-but-one step of the recomputations in a row around `step`, or right before it."""
    high = step
    while high < len(again) and again[high]:
        high += 1
    low = high
    while low > 0 and again[low - 1]:
        low -= 1
    return low, high


def _earlier(study: Study, schedule: list[int], low: int, high: int) -> list[list[int]]:
    """`schedule[low:high]` moved before each of the steps before it, as far as its inputs and first runs allow."""
    moved = schedule[low:high]
    ops = study.problem.ops
    reads = {value for op_id in moved for value in ops[op_id].inputs}
    found: list[list[int]] = []
    for place in range(low - 1, max(-1, low - 1 - FARTHEST), -1):
        if schedule[place] in moved or not reads.isdisjoint(ops[schedule[place]].outputs):
            break
        found.append([*schedule[:place], *moved, *schedule[place:low], *schedule[high:]])
    return found


def hoist(study: Study, schedule: Sequence[int]) -> list[int]:
    """The schedule with recomputations at its peak moved to where they lower it."""
    current = list(schedule)
    peak, width, step = _level(study, current)
    for _ in range(MOVES):
        low, high = _group(_recomputed(current), step)
        ends = sorted({end for end in (high, step + 1) if low < end <= high})
        tries = [(_level(study, moved), moved) for end in ends for moved in _earlier(study, current, low, end)]
        if not tries:
            break
        level, moved = min(tries, key=lambda found: found[0][:2])
        if level[:2] >= (peak, width):
            break
        (peak, width, step), current = level, moved
    return current
