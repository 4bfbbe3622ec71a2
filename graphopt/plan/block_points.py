"""What a graph may cost as one of a chain: for each schedule its peaks, and what it keeps while others run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from graphopt.emit.late_writers import settle
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.plan.generator_states import with_generator_states
from graphopt.plan.kept_curves import keep_curve, kept_curve
from graphopt.planners import Study, pareto_curve
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule, simulate

#: What is asked to be free between forward and backward, as parts of the eager peak, when schedules are looked for:
#: the more, the less is kept. On a block of two layers and one of Llama a finer series found nothing faster.
_FREE_BETWEEN = (0.25, 0.5, 1.0)
#: Points of each curve, and of all together, that are looked at.
_MOST_OF_A_CURVE, _MOST_POINTS = 96, 256

Item = TypeVar("Item")


@dataclass(frozen=True)
class BlockPoint:
    """A schedule as the other graphs of a chain see it.

    `kept_bytes` are there from the end of its forward to the start of its backward, its outputs with them; inputs,
    parameters and the gradients that its backward is given are not the graph's own until that begins.
    """

    forward_bytes: int
    kept_bytes: int
    backward_bytes: int
    seconds: float
    schedule: Schedule


def block_points(graph: CapturedGraph) -> tuple[BlockPoint, ...]:
    """Schedules of which no other one is better in all: with little kept first.

    Three sources: the curve of the graph alone; curves of the graph with a boundary between forward and backward that
    takes room, so that what is kept there has its price; and all of these with nothing kept, the forward computed
    again before the backward, as torch's checkpoint does (with the captured order: the very same).
    """
    schedules: dict[Schedule, None] = {graph.captured_schedule: None}
    for problem in _problems(graph):
        schedules |= dict.fromkeys(_few(_curve(problem), _MOST_OF_A_CURVE))
    schedules |= dict.fromkeys([checkpointed(graph.problem, graph.step.boundary, each) for each in schedules])
    settled = dict.fromkeys(settle(graph.step, each) for each in schedules)
    return _undominated([block_point(graph, each) for each in settled])


def block_point(graph: CapturedGraph, schedule: Schedule) -> BlockPoint:
    """What one schedule costs, generator states counted."""
    simulation = simulate(graph.problem, schedule)
    live = with_generator_states(graph, schedule, simulation.live_bytes)
    place, boundary = schedule.index(graph.step.boundary), graph.problem.ops[graph.step.boundary]
    given_bytes = sum(graph.problem.values[value].bytes for value in boundary.outputs)
    return BlockPoint(
        forward_bytes=int(live[:place].max(initial=0)),
        kept_bytes=int(live[place]) - given_bytes - boundary.workspace_bytes,
        backward_bytes=int(live[place:].max()) if place + 1 == len(schedule) else int(live[place + 1 :].max()),
        seconds=simulation.seconds,
        schedule=schedule,
    )


def checkpointed(problem: Problem, boundary: int, schedule: Sequence[int]) -> Schedule:
    """The forward with nothing kept for the backward, then a schedule as it is: what it makes of the forward is new.

    What may run once alone runs in the first forward, and is kept; what nobody reads is not computed again.
    """
    place = list(schedule).index(boundary)
    forward = tuple(dict.fromkeys(schedule[:place]))
    again = [op for op in schedule[:place] if problem.ops[op].recomputable]
    behind = list(schedule[place + 1 :])
    return (*forward, boundary, *_needed(problem, [*again, *behind], len(again)))


def _needed(problem: Problem, steps: Sequence[int], count: int) -> list[int]:
    """The steps without those of the first `count` whose results nobody reads before they are made again."""
    is_read = [False] * len(problem.values)
    found: list[int] = []
    for position in range(len(steps) - 1, -1, -1):
        op = problem.ops[steps[position]]
        if position < count and not any(is_read[value] for value in op.outputs):
            continue
        found.append(steps[position])
        for value in op.outputs:
            is_read[value] = False
        for value in op.inputs:
            is_read[value] = True
    return found[::-1]


def _problems(graph: CapturedGraph) -> Iterable[Problem]:
    problem, at = graph.problem, graph.step.boundary
    eager_bytes = simulate(problem, graph.captured_schedule).peak_bytes
    yield problem
    for part in _FREE_BETWEEN:
        boundary = replace(problem.ops[at], workspace_bytes=problem.ops[at].workspace_bytes + int(part * eager_bytes))
        yield replace(problem, ops=(*problem.ops[:at], boundary, *problem.ops[at + 1 :]))


def _curve(problem: Problem) -> list[Schedule]:
    kept = [schedule for _, schedule in kept_curve(problem)]
    if kept:
        return kept
    points = pareto_curve(Study(problem))
    keep_curve(problem, ((point.planner, point.schedule) for point in points))
    return [point.schedule for point in points]


def _undominated(points: Sequence[BlockPoint]) -> tuple[BlockPoint, ...]:
    in_order = sorted(points, key=lambda p: (p.kept_bytes, p.seconds, p.backward_bytes, p.forward_bytes))
    costs = np.array([[p.kept_bytes, p.seconds, p.backward_bytes, p.forward_bytes] for p in in_order])
    best: list[int] = []
    for i in range(len(in_order)):
        if not best or not (costs[best] <= costs[i]).all(axis=1).any():
            best.append(i)
    return tuple(in_order[i] for i in _few(best, _MOST_POINTS))


def _few(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of them (two or more), evenly apart, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]
