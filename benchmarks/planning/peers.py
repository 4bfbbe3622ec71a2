"""`auto` against its peers on a captured model: same problem, same costs, same simulator.

Peers are (a) every block wrapped in `torch.utils.checkpoint` and (b) PyTorch's
`activation_memory_budget` at ten ratios. Each peer's decision becomes a schedule of our problem, so
that its true peak and its time come from the simulator that judges `auto`. `auto` is then given the
peer's peak and compared by time, and given the peer's time and compared by peak.

Generator states that a recomputed random op needs are left out on all sides (5 kB each).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.planning.subjects import Peer, Subject
from graphopt.planners import pareto_curve
from graphopt.problem.schedule import simulate

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


def auto_points(subject: Subject) -> list[tuple[int, float]]:
    """(peak bytes, seconds) of `auto`, smallest peak first; the captured order is always one."""
    eager = simulate(subject.problem, subject.captured_schedule)
    points = [(p.peak_bytes, p.seconds) for p in pareto_curve(subject.problem)]
    return sorted([*points, (eager.peak_bytes, eager.seconds)])


def compare(subject: Subject, points: Sequence[tuple[int, float]], peer: Peer) -> Row:
    """One peer's schedule against `auto`, given as its `points`, at the same peak, and at the same time."""
    theirs = simulate(subject.problem, peer.schedule)
    eager = simulate(subject.problem, subject.captured_schedule)
    seconds = min((s for peak, s in points if peak <= theirs.peak_bytes), default=math.inf)
    allowed = theirs.seconds + EQUAL_SECONDS * eager.seconds
    return Row(
        model=subject.name,
        peer=peer.peer,
        setting=peer.setting,
        eager_peak_bytes=eager.peak_bytes,
        peer_peak_bytes=theirs.peak_bytes,
        peer_overhead=theirs.seconds / eager.seconds - 1,
        auto_overhead=seconds / eager.seconds - 1,
        auto_peak_bytes=min((peak for peak, s in points if s <= allowed), default=eager.peak_bytes),
    )


def compare_all(subject: Subject) -> Iterator[Row]:
    """Every peer's points on one model."""
    points = auto_points(subject)
    return (compare(subject, points, peer) for peer in subject.peers)
