"""What the pipeline makes on its way: a captured graph, and a planned one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from graphopt.base.errors import InfeasibleError, PlanMismatchError, ScheduleError, UsageError
from graphopt.cost_models import COST_MODELS
from graphopt.emit.emit import Emitted, emit, emit_whole, generator_state_bytes
from graphopt.emit.late_writers import settle
from graphopt.graph.step_graph import StepGraph
from graphopt.plan.checkpoints import find_checkpoints, recomputed_names
from graphopt.planners import PLANNERS, pareto_curve
from graphopt.planners.bounds.lower_bound import lower_bound_seconds
from graphopt.problem.plan import GraphPlan, KeptPoint
from graphopt.problem.problem import Problem
from graphopt.problem.runs import runs_of, schedule_of, thinned
from graphopt.problem.schedule import Schedule, Simulation, check_schedule, simulate

#: Points of the curve that a plan keeps: some hundred kilobytes for a thousand ops.
MOST_KEPT = 128
#: Budgets at which a named planner is asked where several graphs share one: some take seconds for each.
_ASKED = 8


@dataclass(frozen=True)
class Choice:
    """How to plan: names of planner and cost model, seconds to search for better, and kept plans by graph hash."""

    planner: str = "auto"
    cost_model: str = "auto"
    kept: Mapping[str, GraphPlan] | None = None
    plan_seconds: float = 0.0

    def __post_init__(self) -> None:
        for kind, name, known in (("planner", self.planner, PLANNERS), ("cost model", self.cost_model, COST_MODELS)):
            if name not in known:
                raise UsageError(f"unknown {kind} {name!r}; choose one of {', '.join(known)}")
        if not 0 <= self.plan_seconds < math.inf:
            raise UsageError(f"plan_seconds: expected a number of seconds, 0 or more, got {self.plan_seconds!r}")


@dataclass(frozen=True)
class Candidate:
    """One schedule of a graph; `peak_bytes` counts the generator states that it keeps."""

    peak_bytes: int
    seconds: float
    planner: str
    schedule: Schedule


@dataclass(frozen=True)
class CapturedGraph:
    """A step graph and its problem: all that is needed to plan it. With `kept` it is planned already."""

    name: str
    break_reason: str
    step: StepGraph
    problem: Problem
    kept: GraphPlan | None = None

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
        """The whole memory/time curve, the kept plan's or else `auto`'s: peaks increase, seconds strictly decrease."""
        found = self._kept_candidates(self.kept) if self.kept else self._new_candidates()
        none = self._candidate(self.eager.seconds, "none", self.captured_schedule, self.eager.peak_bytes)
        return _pareto([*found, none])

    def curve_by(self, planner: str) -> tuple[Candidate, ...]:
        """The curve of one planner; `peak_bytes` are then those to ask it for, of which a schedule may need less.

        Only `auto` has a whole curve: others are asked for their least, for eager's peak, and evenly between.
        """
        if planner == "auto" or self.kept:
            return self.curve
        eager = Candidate(self.eager.peak_bytes, self.eager.seconds, "none", self.captured_schedule)
        try:
            self.schedule_by(planner, 0)
            least = 0
        except InfeasibleError as error:
            least = error.minimum_bytes
        budgets = [least + (eager.peak_bytes - least) * i // (_ASKED - 1) for i in range(_ASKED - 1)]
        return _pareto([eager, *(c for budget in budgets for c in self._asked(planner, budget))])

    def _asked(self, planner: str, budget_bytes: int) -> Iterable[Candidate]:
        try:
            schedule = settle(self.step, self.schedule_by(planner, budget_bytes))
        except InfeasibleError:
            return
        yield Candidate(budget_bytes, simulate(self.problem, schedule).seconds, planner, schedule)

    def schedule_by(self, planner: str, budget_bytes: int) -> Schedule:
        """What a planner makes of the graph in so many bytes, generator states counted; eager's order where it fits.

        Raises InfeasibleError, with the least that the planner needs.
        """
        if self.eager.peak_bytes <= budget_bytes:
            return self.captured_schedule
        try:
            return PLANNERS[planner](self.problem, budget_bytes - self.most_state_bytes)
        except InfeasibleError as error:
            least = min(error.minimum_bytes + self.most_state_bytes, self.eager.peak_bytes)
            raise InfeasibleError(budget_bytes, least) from None

    @cached_property
    def kept_schedule(self) -> Schedule | None:
        """The schedule of the kept plan; raises PlanMismatchError where it is none of this graph's."""
        return self._checked(self.kept.schedule) if self.kept else None

    def peak_bytes(self, schedule: Schedule) -> int:
        """The peak of a schedule, generator states counted."""
        return simulate(self.problem, schedule).peak_bytes + generator_state_bytes(self.step, schedule)

    def _new_candidates(self) -> Iterable[Candidate]:
        return (self._candidate(p.seconds, p.planner, p.schedule, p.peak_bytes) for p in pareto_curve(self.problem))

    def _kept_candidates(self, kept: GraphPlan) -> Iterable[Candidate]:
        """The kept points, their bytes as simulated today; times keep their ratio to eager's, which noise would not."""
        scale = self.eager.seconds / kept.eager_seconds if kept.eager_seconds else 1.0
        points = [(kept.seconds, kept.planner, kept.schedule)]
        points += [(point.seconds, point.planner, schedule_of(point.runs)) for point in kept.curve]
        for seconds, planner, steps in points:
            schedule = self._checked(steps)
            yield Candidate(self.peak_bytes(schedule), seconds * scale, planner, schedule)

    def _checked(self, schedule: Schedule) -> Schedule:
        try:
            return check_schedule(self.problem, schedule)
        except ScheduleError as error:
            raise PlanMismatchError(f"the plan's schedule for {self.name!r} is not valid: {error}") from None

    def _candidate(self, seconds: float, planner: str, schedule: Schedule, peak_bytes: int) -> Candidate:
        if self.step.late_writers:
            schedule = settle(self.step, schedule)
            peak_bytes = simulate(self.problem, schedule).peak_bytes
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
    """A captured graph with its schedule, what the simulator says of it, and the code it becomes."""

    captured: CapturedGraph
    choice: Choice
    budget_bytes: int
    schedule: Schedule
    simulation: Simulation

    @cached_property
    def emitted(self) -> Emitted:
        """Forward and backward, for autograd to call one after the other."""
        return emit(self.captured.step, self.schedule)

    @cached_property
    def whole(self) -> fx.GraphModule:
        """Forward and backward in one graph, whose tangents are inputs."""
        return emit_whole(self.captured.step, self.schedule)

    @cached_property
    def plan(self) -> GraphPlan:
        """What is kept and shown of it. It is made when it is asked for: running a step needs none of it."""
        captured, choice = self.captured, self.choice
        planner = captured.kept.planner if captured.kept else choice.planner
        return GraphPlan(
            name=captured.name,
            graph_hash=captured.step.graph_hash,
            planner=planner,
            cost_model=choice.cost_model,
            schedule=self.schedule,
            budget_bytes=self.budget_bytes,
            peak_bytes=captured.peak_bytes(self.schedule),
            eager_peak_bytes=captured.eager.peak_bytes,
            minimum_bytes=captured.minimum_bytes,
            seconds=self.simulation.seconds,
            eager_seconds=captured.eager.seconds,
            bound_seconds=self._bound_seconds(),
            checkpoints=find_checkpoints(captured.step, captured.problem, self.schedule),
            recomputed=recomputed_names(captured.step, self.schedule),
            curve=_kept_points(captured.curve),
        )

    def _bound_seconds(self) -> float:
        # Two sums of the same seconds may differ by rounding.
        return min(lower_bound_seconds(self.captured.problem, self.budget_bytes), self.simulation.seconds)


def _pareto(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    best: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.peak_bytes, c.seconds)):
        if not best or candidate.seconds < best[-1].seconds:
            best.append(candidate)
    return tuple(best)


def _kept_points(curve: Sequence[Candidate]) -> tuple[KeptPoint, ...]:
    few = thinned(curve, MOST_KEPT)
    return tuple(KeptPoint(c.peak_bytes, c.seconds, c.planner, runs_of(c.schedule)) for c in few)
