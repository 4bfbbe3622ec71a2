"""The simulator's second lane: transfers run in the order in which they begin, beside what computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from graphopt.graph.step_graph import StepGraph
from graphopt.graph.transfers import fetched_values
from graphopt.kernels.offload.link import DepotLink
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule


@dataclass(frozen=True)
class LaneTransfer:
    """What op `op` made goes out of memory, or comes back (`is_fetch`): when that begins, and how long it takes."""

    op: int
    is_fetch: bool
    bytes: int
    begin_seconds: float
    seconds: float


@dataclass(frozen=True)
class Lanes:
    """What a schedule takes on both lanes: `begins[place]` is when its op begins, `written[op]` when it is written.

    `waited_seconds` are those in which nothing computes; `transfers` are all of the second lane, in order.
    """

    seconds: float
    waited_seconds: float
    begins: tuple[float, ...]
    written: dict[int, float]
    transfers: tuple[LaneTransfer, ...]


def moved_bytes(step: StepGraph, problem: Problem, schedule: Schedule) -> int:
    """What goes out of memory and comes back."""
    back = [value for values in fetched_values(step, schedule).values() for value in values]
    return _bytes_of(problem, (*back, *dict.fromkeys(back)))


def run_lanes(step: StepGraph, problem: Problem, schedule: Schedule, link: DepotLink, *, waits: bool = True) -> Lanes:
    """Run a schedule on both lanes; not `waits`: as if nothing had to wait for a transfer."""
    at_fetch = fetched_values(step, schedule)
    moved: dict[int, set[int]] = {}
    for place, values in at_fetch.items():
        moved.setdefault(schedule[place] - 1, set()).update(values)
    now = free = waited = 0.0
    begins: list[float] = []
    written: dict[int, float] = {}
    arriving: dict[int, float] = {}
    transfers: list[LaneTransfer] = []

    def wait_until(then: float) -> None:
        nonlocal now, waited
        if waits and then > now:
            waited, now = waited + then - now, then

    for place, number in enumerate(schedule):
        op, transfer = problem.ops[number], step.ops[number].transfer
        for value in op.inputs:
            if value in arriving:
                wait_until(arriving.pop(value))
                now += link.host_seconds
        begins.append(now)
        if transfer is None:
            now += op.seconds
            if number in moved and number not in written:
                now += link.host_seconds
                size_bytes = _bytes_of(problem, moved[number])
                seconds = link.write_seconds(size_bytes)
                transfers.append(LaneTransfer(number, False, size_bytes, max(free, now), seconds))
                written[number] = free = max(free, now) + seconds
                if place + 1 == len(schedule) or schedule[place + 1] != number + 1:
                    wait_until(free)
        elif place in at_fetch:
            now += link.host_seconds
            size_bytes = _bytes_of(problem, at_fetch[place])
            seconds = link.read_seconds(size_bytes)
            transfers.append(LaneTransfer(transfer.of, True, size_bytes, max(free, now), seconds))
            free = max(free, now) + seconds
            arriving |= dict.fromkeys(at_fetch[place], free)
        elif not transfer.is_fetch and transfer.of in moved:
            wait_until(written[transfer.of])
            now += link.host_seconds
    return Lanes(now, waited, tuple(begins), written, tuple(transfers))


def _bytes_of(problem: Problem, values: Iterable[int]) -> int:
    return sum(problem.values[value].bytes for value in values)
