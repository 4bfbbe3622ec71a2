"""Gathers begin early: a parameter travels while what stands before its reader computes, as far as bytes allow."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.graph.captured_graph import CapturedGraph
from graphopt.kernels.sharding import ops
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule, Simulation, simulate


def prefetched(
    graph: CapturedGraph, schedule: Schedule, simulation: Simulation, gathers: frozenset[int], budget_bytes: int
) -> tuple[Schedule, Simulation]:
    """The schedule with each of its `gathers` so early that it travels behind what runs meanwhile, or as bytes allow.

    Gathers keep their order, as all ranks' must be one; nothing is computed more often. The first run of what only the
    backward reads stays behind the loss. `simulation` is the schedule's; the new one's is given too.
    """
    step = graph.step
    search = _Search(graph.problem, list(schedule), gathers, budget_bytes, simulation)
    for place in range(len(schedule)):
        op_id = search.schedule[place]
        if op_id in gathers:
            behind_loss = search.schedule.index(step.boundary) + 1 if step.ops[op_id].backward else 0
            search.advance(place, behind_loss)
    assert search.simulation.peak_bytes <= max(budget_bytes, simulation.peak_bytes)
    return tuple(search.schedule), search.simulation


def gathers_of(graph: CapturedGraph) -> frozenset[int]:
    """The ops that gather parameters which ranks share out."""
    nodes = enumerate(op.node for op in graph.step.ops)
    return frozenset(i for i, node in nodes if node is not None and node.target is ops.gather)


@dataclass
class _Search:
    """A schedule that is being changed, and what it costs."""

    problem: Problem
    schedule: list[int]
    gathers: frozenset[int]
    budget_bytes: int
    simulation: Simulation

    def advance(self, place: int, least: int) -> None:
        """Let the gather at `place`, with what feeds it right before it, run as early as helps, not before `least`."""
        first = place
        while first > least and self._feeds(self.schedule[first - 1], self.schedule[place]):
            first -= 1
        earliest = self._earliest(first, self.schedule[first : place + 1], least)
        if earliest == first:
            return
        block = self.schedule[first : place + 1]
        moved = [*self.schedule[:earliest], *block, *self.schedule[earliest:first], *self.schedule[place + 1 :]]
        after = simulate(self.problem, moved)
        if after.live_bytes[earliest : place + 1].max() <= max(self.budget_bytes, self.simulation.peak_bytes):
            self.schedule, self.simulation = moved, after

    def _earliest(self, first: int, block: list[int], least: int) -> int:
        """The place to which a block may move: it then travels behind enough, or bytes or order allow no more."""
        ops = [self.problem.ops[op_id] for op_id in block]
        own_bytes = sum(self.problem.values[value].bytes for op in ops for value in op.outputs)
        to_hide, hidden, at = ops[-1].seconds, 0.0, first
        while at > least and hidden < to_hide:
            before = self.schedule[at - 1]
            if before in self.gathers or any(self._is_bound(before, op_id) for op_id in block):
                break
            if self.simulation.live_bytes[at - 1] + own_bytes > self.budget_bytes:
                break
            hidden += self.problem.ops[before].seconds
            at -= 1
        return at

    def _feeds(self, op_id: int, gather: int) -> bool:
        """Whether an op makes what the gather reads, of what is always there: a parameter's rows in another dtype."""
        op, own = self.problem.ops[op_id], self.problem.ops[gather]
        is_resident = all(self.problem.producer[value] < 0 for value in op.inputs)
        return is_resident and not set(op.outputs).isdisjoint(own.inputs)

    def _is_bound(self, before: int, op_id: int) -> bool:
        """Whether an op makes what another reads, or reads what an earlier run of that made, whose place it takes."""
        op, own = self.problem.ops[before], self.problem.ops[op_id]
        return not set(op.outputs).isdisjoint(own.inputs) or not set(op.inputs).isdisjoint(own.outputs)
