"""CapturedGraph: one joint graph as it was captured, read as ops and values, and priced."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.graph.step_graph import StepGraph
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule


@dataclass(frozen=True)
class CapturedGraph:
    """A step graph and its problem: all that is needed to plan it.

    `break_reason` says why and where the capture ended, "" where it is the whole model.
    """

    name: str
    break_reason: str
    step: StepGraph
    problem: Problem

    @property
    def captured_schedule(self) -> Schedule:
        """Every op once, in the captured order."""
        return tuple(range(len(self.problem.ops)))
