"""When transfers run: as late, and as early, as bytes allow and time asks."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphopt.graph.captured_graph import CapturedGraph
from graphopt.graph.transfers import fetched_values
from graphopt.kernels.offload.link import DepotLink
from graphopt.plan.offload.lanes import run_lanes
from graphopt.problem.schedule import Schedule, Simulation, simulate


def placed_transfers(
    graph: CapturedGraph, schedule: Schedule, link: DepotLink, budget_bytes: int
) -> tuple[Schedule, Simulation]:
    """The schedule with its transfers placed, what is alive in it, and its seconds on both lanes.

    Nothing is computed more often. It takes at most `budget_bytes`, or what the schedule takes.
    """
    before = simulate(graph.problem, schedule)
    search = _Placing(graph, list(schedule), max(budget_bytes, before.peak_bytes), before)
    search.settle_late(link)
    search.fetch_early(link)
    found = tuple(search.schedule)
    assert search.simulation.peak_bytes <= search.budget_bytes
    seconds, as_it_was = (run_lanes(graph.step, graph.problem, each, link).seconds for each in (found, schedule))
    if as_it_was < seconds:
        return schedule, Simulation(before.live_bytes, as_it_was)
    return found, Simulation(search.simulation.live_bytes, seconds)


@dataclass
class _Placing:
    """A schedule that is being changed, and what is alive in it."""

    graph: CapturedGraph
    schedule: list[int]
    budget_bytes: int
    simulation: Simulation
    moved: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.moved = {self.schedule[place] - 1 for place in self._fetches()}

    def _fetches(self) -> list[int]:
        return list(fetched_values(self.graph.step, tuple(self.schedule)))

    def settle_late(self, link: DepotLink) -> None:
        """Wait for a value to be written behind its last reader: as late as bytes allow, until it should be."""
        for op in sorted(self.moved, key=self.schedule.index):
            fetch, settle = op + 1, op + 2
            first = self.schedule.index(fetch)
            again = next((p for p in range(first + 1, len(self.schedule)) if self.schedule[p] == fetch), None)
            if again is None:  # what is fetched stands apart from its op, which waits itself
                continue
            self._move(self.schedule.index(settle), self._last_reader(op, first, again) + 1)
            self._move(self.schedule.index(settle), self._late(op, link) + 1)

    def fetch_early(self, link: DepotLink) -> None:
        """Fetch so early that values are there when they are read, as far as bytes allow."""
        lanes = run_lanes(self.graph.step, self.graph.problem, tuple(self.schedule), link, waits=False)
        asked = self._asked_times(link, lanes.begins)
        least = self.schedule.index(self.graph.step.boundary) + 1
        for number in range(len(asked)):
            place = self._fetches()[number]
            least = max(least, self._fetch_by(place, least, asked[number], lanes.begins))

    def _asked_times(self, link: DepotLink, begins: tuple[float, ...]) -> list[float]:
        """When each fetch should begin, so that it and all those behind it are there in time."""
        problem, asked, following = self.graph.problem, [], float("inf")
        for place in reversed(self._fetches()):
            outputs = problem.ops[self.schedule[place]].outputs
            size_bytes = sum(problem.values[value].bytes for value in outputs)
            read = next(
                (p for p in range(place + 1, len(begins)) if set(problem.ops[self.schedule[p]].inputs) & set(outputs)),
                len(begins) - 1,
            )
            following = min(begins[read], following) - link.read_seconds(size_bytes)
            asked.append(following)
        return asked[::-1]

    def _fetch_by(self, place: int, least: int, then: float, begins: tuple[float, ...]) -> int:
        """Move a fetch in front of what begins `then`; where it stands afterwards. Times are of before any moved."""
        problem, live_bytes = self.graph.problem, self.simulation.live_bytes
        fetch = problem.ops[self.schedule[place]]
        size_bytes = sum(problem.values[value].bytes for value in fetch.outputs)
        at = place
        while at > least and begins[min(at, len(begins) - 1)] > then:
            before = self.schedule[at - 1]
            is_bound = bool({*problem.ops[before].inputs, *problem.ops[before].outputs} & set(fetch.outputs))
            transfer = self.graph.step.ops[before].transfer
            if is_bound or (transfer is not None and transfer.is_fetch):
                break
            if live_bytes[at - 1] + size_bytes > self.budget_bytes:
                break
            at -= 1
        self._move(place, at)
        return at + 1

    def _last_reader(self, op: int, first: int, again: int) -> int:
        """The place of the last reader of what an op made, before it is fetched again."""
        problem, outputs = self.graph.problem, set(self.graph.problem.ops[op + 1].outputs)
        places = range(first, again)
        return max(
            (p for p in places if self.schedule[p] != op + 2 and outputs & set(problem.ops[self.schedule[p]].inputs)),
            default=first,
        )

    def _late(self, op: int, link: DepotLink) -> int:
        """The place behind which an op's outputs are waited for."""
        problem = self.graph.problem
        lanes = run_lanes(self.graph.step, problem, tuple(self.schedule), link, waits=False)
        size_bytes = sum(problem.values[value].bytes for value in problem.ops[op + 1].outputs)
        at = self.schedule.index(op + 2)
        while at + 1 < len(self.schedule) and lanes.begins[at] < lanes.written[op]:
            if self.schedule[at + 1] == op + 1 or self.simulation.live_bytes[at + 1] + size_bytes > self.budget_bytes:
                break
            at += 1
        return at

    def _move(self, place: int, to: int) -> None:
        """Move what stands at `place` in front of what stands at `to`, if bytes stay in their budget.

        Not between an op and what hands its outputs on, which would then be fetched.
        """
        transfer = self.graph.step.ops[self.schedule[to]].transfer if to < len(self.schedule) else None
        if transfer is not None and transfer.is_fetch and self.schedule[to - 1] == transfer.of:
            to += 1
        if to in (place, place + 1):
            return
        moved = list(self.schedule)
        moved.insert(to - (to > place), moved.pop(place))
        after = simulate(self.graph.problem, moved)
        if after.peak_bytes <= self.budget_bytes:
            self.schedule, self.simulation = moved, after
