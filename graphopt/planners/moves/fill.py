"""From a schedule with little memory upwards: keep, one by one, what saves most seconds per byte."""

from __future__ import annotations

import numpy as np

from graphopt.planners.curves.curve import Curve, CurvePoint
from graphopt.planners.curves.effort import effort_for
from graphopt.planners.schedules.memory_profile import MemoryProfile, profile_of
from graphopt.planners.study.study import Study


def fill(study: Study, seed: CurvePoint, planner: str, batches: int = 96, known: Curve = ()) -> list[CurvePoint]:
    """The trajectory of `seed` up to the schedule without recomputation, one point a move.

    Moves are made in `batches` batches at the least. It ends early where it is far above the `known`
    curve. A greedy for the unsplittable flow on a path: what fits under the present peak goes first,
    then what saves most seconds for the bytes it takes.
    """
    base = seed.steps
    known_peaks = np.array([p.peak_bytes for p in known], dtype=np.int64)
    known_seconds = np.array([p.seconds for p in known])
    peaks, seconds, gone_at = study.loops.fill(base, batches, known_peaks, known_seconds)
    moves = zip(peaks.tolist(), seconds.tolist(), strict=True)
    return [CurvePoint(peak, taken, planner, base, gone_at, at) for at, (peak, taken) in enumerate(moves)]


def fill_under(line: MemoryProfile, level_bytes: int) -> MemoryProfile:
    """The schedule without those recomputations that can go while its peak stays at `level_bytes` or below."""
    filled = line.study.loops.fill_under(line.steps, level_bytes)
    return line if len(filled) == len(line.steps) else profile_of(line.study, filled)


def fill_points(study: Study, seeds: Curve, known: Curve = ()) -> list[CurvePoint]:
    """What keeping more makes of those `seeds` that lie far enough apart, and not far above a `known` curve."""
    points: list[CurvePoint] = []
    effort = effort_for(study)
    last = 0.0
    for seed in seeds:
        if seed.peak_bytes * effort.apart >= last and len(seed.base) > len(study.problem.ops):
            last = float(seed.peak_bytes)
            points.extend(fill(study, seed, seed.planner, effort.batches, () if effort.patient else known))
    return points
