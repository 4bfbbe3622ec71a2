"""What the pipeline makes on its way: a captured graph, and a planned one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from graphopt.cost_models import COST_MODELS
from graphopt.emit import Emitted, emit, emit_whole, generator_state_bytes
from graphopt.errors import UsageError
from graphopt.plan import GraphPlan
from graphopt.planners import PLANNERS, pareto_curve
from graphopt.problem import Problem
from graphopt.schedule import Schedule, Simulation, simulate
from graphopt.stepgraph import StepGraph


@dataclass(frozen=True)
class Choice:
    """How to plan: names of planner and cost model, and kept plans by graph hash."""

    planner: str = "auto"
    cost_model: str = "auto"
    kept: Mapping[str, GraphPlan] | None = None

    def __post_init__(self) -> None:
        for kind, name, known in (("planner", self.planner, PLANNERS), ("cost model", self.cost_model, COST_MODELS)):
            if name not in known:
                raise UsageError(f"unknown {kind} {name!r}; choose one of {', '.join(known)}")


@dataclass(frozen=True)
class Candidate:
    """One schedule of a graph; `peak_bytes` counts the generator states that it keeps."""

    peak_bytes: int
    seconds: float
    planner: str
    schedule: Schedule


@dataclass(frozen=True)
class CapturedGraph:
    """A step graph and its problem: all that is needed to plan it."""

    name: str
    break_reason: str
    step: StepGraph
    problem: Problem

    @cached_property
    def eager(self) -> Simulation:
        """Every op once, in the captured order."""
        return simulate(self.problem, self.captured_schedule)

    @property
    def captured_schedule(self) -> Schedule:
        """Every op once, in the captured order."""
        return tuple(range(len(self.problem.ops)))

    @cached_property
    def curve(self) -> tuple[Candidate, ...]:
        """The whole memory/time curve of `auto`: peaks increase, seconds strictly decrease."""
        found = [self._candidate(p.seconds, p.planner, p.schedule, p.peak_bytes) for p in pareto_curve(self.problem)]
        found.append(self._candidate(self.eager.seconds, "none", self.captured_schedule, self.eager.peak_bytes))
        best: list[Candidate] = []
        for candidate in sorted(found, key=lambda c: (c.peak_bytes, c.seconds)):
            if not best or candidate.seconds < best[-1].seconds:
                best.append(candidate)
        return tuple(best)

    def _candidate(self, seconds: float, planner: str, schedule: Schedule, peak_bytes: int) -> Candidate:
        return Candidate(peak_bytes + generator_state_bytes(self.step, schedule), seconds, planner, schedule)

    @cached_property
    def most_state_bytes(self) -> int:
        """The most that saved generator states can take, were every random op recomputed."""
        return generator_state_bytes(self.step, 2 * self.captured_schedule)

    @property
    def minimum_bytes(self) -> int:
        """The least bytes of its own in which the graph runs."""
        return self.curve[0].peak_bytes


@dataclass(frozen=True)
class PlannedGraph:
    """A captured graph with its plan, what the simulator says of it, and the code it becomes."""

    captured: CapturedGraph
    plan: GraphPlan
    simulation: Simulation

    @cached_property
    def emitted(self) -> Emitted:
        """Forward and backward, for autograd to call one after the other."""
        return emit(self.captured.step, self.plan.schedule)

    @cached_property
    def whole(self) -> fx.GraphModule:
        """Forward and backward in one graph, whose tangents are inputs."""
        return emit_whole(self.captured.step, self.plan.schedule)
