"""What a training step adds to the report of its graphs."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.report.data import StepFigures
from graphopt.step.memory import StepMemory
from graphopt.step.micro_batches.micro_graph import Micro


def step_figures(
    micros: Sequence[Micro],
    micro_rows: int,
    memory: StepMemory,
    sends: tuple[int, int, tuple[str, ...]],
    ways: tuple[tuple[str, str], ...],
) -> StepFigures:
    """Of a step of these micro-batches: their seconds, its tail, what is sent (`sent()`), and what else is done how."""
    seconds = sum(micro.planned.simulation.seconds for micro in micros)
    return StepFigures(len(micros), micro_rows, seconds, memory.highest().tail_bytes, *sends, ways)
