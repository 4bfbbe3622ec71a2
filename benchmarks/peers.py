"""`auto` against its peers on a captured model: same problem, same costs, same simulator.

Peers are (a) every block wrapped in `torch.utils.checkpoint` and (b) PyTorch's
`activation_memory_budget` at ten ratios. Each peer's decision becomes a schedule of our problem, so
that its true peak and its time come from the simulator that judges `auto`. `auto` is then given the
peer's peak and compared by time, and given the peer's time and compared by peak.

Generator states that a recomputed random op needs are left out on all sides (5 kB each).
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from peer_schedules import checkpoint_every_block, pytorch_budget

from graphopt.errors import ScheduleError
from graphopt.planned import CapturedGraph
from graphopt.planners import pareto_curve
from graphopt.problem import Problem
from graphopt.schedule import Schedule, simulate

RATIOS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0)

EQUAL_SECONDS = 5e-4
"""Overheads nearer than this share of eager's time count as equal: the cost model knows no better."""


@dataclass(frozen=True)
class Row:
    """A peer's point, and what `auto` does at its peak and at its time; overheads are over eager's time."""

    model: str
    peer: str
    setting: str
    eager_peak_bytes: int
    peer_peak_bytes: int
    peer_overhead: float
    auto_overhead: float
    auto_peak_bytes: int

    @property
    def verdict(self) -> str:
        """How `auto` compares: by time at the peer's peak."""
        gap = self.auto_overhead - self.peer_overhead
        return "equal" if abs(gap) <= EQUAL_SECONDS else "better" if gap < 0 else "WORSE"


def auto_points(captured: CapturedGraph, problem: Problem) -> list[tuple[int, float]]:
    """(peak bytes, seconds) of `auto`, smallest peak first; the captured order is always one."""
    eager = simulate(problem, captured.captured_schedule)
    points = [(p.peak_bytes, p.seconds) for p in pareto_curve(problem)]
    return sorted([*points, (eager.peak_bytes, eager.seconds)])


def compare(captured: CapturedGraph, model: str, peer: str, setting: str, schedule: Schedule) -> Row:
    """One peer's schedule against `auto` at the same peak, and at the same time."""
    theirs, eager = simulate(captured.problem, schedule), captured.eager
    points = auto_points(captured, captured.problem)
    seconds = min((s for peak, s in points if peak <= theirs.peak_bytes), default=math.inf)
    allowed = theirs.seconds + EQUAL_SECONDS * eager.seconds
    return Row(
        model=model,
        peer=peer,
        setting=setting,
        eager_peak_bytes=eager.peak_bytes,
        peer_peak_bytes=theirs.peak_bytes,
        peer_overhead=theirs.seconds / eager.seconds - 1,
        auto_overhead=seconds / eager.seconds - 1,
        auto_peak_bytes=min((peak for peak, s in points if s <= allowed), default=eager.peak_bytes),
    )


def compare_all(captured: CapturedGraph, model: str) -> Iterator[Row]:
    """Every peer's points on one captured model; checkpointing only where the model has repeated blocks."""
    by_block = checkpoint_every_block(captured)
    if len(by_block) > len(captured.problem.ops):
        yield compare(captured, model, "checkpoint", "every block", by_block)
    for ratio in RATIOS:
        try:
            yield compare(captured, model, "PyTorch budget", f"{ratio:g}", pytorch_budget(captured, ratio))
        except (ScheduleError, AssertionError) as error:  # an assertion is PyTorch's own, in its partitioner
            print(
                f"{model}: left out, PyTorch's plan at {ratio:g} is none of a training step: {error}", file=sys.stderr
            )


def without_gradients(captured: CapturedGraph) -> Problem:
    """The problem where every gradient was allocated beforehand: one just made is added to it and gone."""
    step = captured.step
    kept = tuple(value for value in captured.problem.outputs if step.values[value].kind != "gradients")
    return dataclasses.replace(captured.problem, outputs=kept)
