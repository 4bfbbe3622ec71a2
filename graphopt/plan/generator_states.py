"""What the generator's states take, which recomputed random ops save and replay."""

from __future__ import annotations

import numpy as np

from graphopt.emit.generator_state import GENERATOR_STATE_BYTES, generator_state_bytes
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.planners.native.arrays import Ints
from graphopt.problem.schedule import Schedule


def with_generator_states(graph: CapturedGraph, schedule: Schedule, live_bytes: Ints) -> Ints:
    """Live bytes at each step, with the saved states, and the current one that a replay puts aside."""
    saved_bytes = generator_state_bytes(graph.step, schedule)
    live = live_bytes + saved_bytes
    if not saved_bytes:
        return live
    seen: set[int] = set()
    is_random = np.array([op.random for op in graph.step.ops])[list(schedule)]
    for position in np.flatnonzero(is_random):
        op = schedule[position]
        if op in seen:
            live[position] += GENERATOR_STATE_BYTES
        seen.add(op)
    return live


def most_generator_state_bytes(graph: CapturedGraph) -> int:
    """The most that states can take, were every random op recomputed."""
    saved_bytes = generator_state_bytes(graph.step, 2 * graph.captured_schedule)
    return saved_bytes + GENERATOR_STATE_BYTES if saved_bytes else 0
