"""What the generator's states take, which recomputed random ops save and replay."""

from __future__ import annotations

import numpy as np

from graphopt.emit.emit import GENERATOR_STATE_BYTES, generator_state_bytes
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.problem.schedule import Schedule, Simulation, simulate


def with_generator_states(graph: CapturedGraph, schedule: Schedule, simulation: Simulation) -> np.ndarray:
    """The simulation's live bytes at each step, with the saved states, and the current one that a replay puts aside."""
    saved_bytes = generator_state_bytes(graph.step, schedule)
    live: np.ndarray = simulation.live_bytes + saved_bytes
    if not saved_bytes:
        return live
    seen: set[int] = set()
    for position, op in enumerate(schedule):
        if op in seen and graph.step.ops[op].random:
            live[position] += GENERATOR_STATE_BYTES
        seen.add(op)
    return live


def peak_with_generator_states(graph: CapturedGraph, schedule: Schedule) -> int:
    """The peak of a schedule, generator states counted."""
    return int(with_generator_states(graph, schedule, simulate(graph.problem, schedule)).max(initial=0))


def most_generator_state_bytes(graph: CapturedGraph) -> int:
    """The most that states can take, were every random op recomputed."""
    saved_bytes = generator_state_bytes(graph.step, 2 * graph.captured_schedule)
    return saved_bytes + GENERATOR_STATE_BYTES if saved_bytes else 0
