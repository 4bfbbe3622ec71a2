"""PlannedGraph: a captured graph with its schedule, and the plan of it that is kept and shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from graphopt.cost_models import resolved_name
from graphopt.graph.captured_graph import CapturedGraph, Decision
from graphopt.graph.transfers import fetch_ops, fetched_values
from graphopt.plan.checkpoints import find_checkpoints, recomputed_names
from graphopt.plan.choice import Choice
from graphopt.plan.graph_study import Candidate, GraphStudy
from graphopt.plan.module_shares import module_shares
from graphopt.plan.offload.lanes import moved_bytes
from graphopt.planners.bounds.lower_bound import lower_bound_seconds
from graphopt.problem.plan import GraphPlan, KeptPoint
from graphopt.problem.runs import runs_of, thinned
from graphopt.problem.schedule import Schedule, Simulation

#: Points of the curve that a plan keeps: some hundred kilobytes for a thousand ops.
MOST_KEPT = 128


@dataclass(eq=False)
class PlannedGraph:
    """A captured graph with its schedule, and what the simulator says of it."""

    study: GraphStudy
    choice: Choice
    budget_bytes: int
    schedule: Schedule
    simulation: Simulation

    @property
    def captured(self) -> CapturedGraph:
        """The graph that is planned."""
        return self.study.graph

    @property
    def decision(self) -> Decision:
        """How it is to run."""
        depot = self.choice.offload.depot if self.choice.offload is not None else ""
        return Decision(self.schedule, self.captured.pieces, self.captured.moved, depot)

    @property
    def peak_bytes(self) -> int:
        """Predicted peak of the graph's own values, generator states counted."""
        return self.study.peak_bytes(self.schedule)

    @cached_property
    def plan(self) -> GraphPlan:
        """What is kept and shown of it. It is made when it is asked for: running a step needs none of it."""
        study, step, problem = self.study, self.captured.step, self.captured.problem
        return GraphPlan(
            name=self.captured.name,
            graph_hash=step.graph_hash,
            planner=study.kept.planner if study.kept else self.choice.planner,
            cost_model=resolved_name(self.choice.cost_model, step.device),
            compiler=self.choice.compiler,
            numerics=self.choice.numerics,
            pieces=self.captured.pieces,
            schedule=self.schedule,
            budget_bytes=self.budget_bytes,
            peak_bytes=self.peak_bytes,
            eager_peak_bytes=study.origin.eager.peak_bytes,
            minimum_bytes=study.minimum_bytes,
            seconds=self.simulation.seconds,
            eager_seconds=study.origin.eager.seconds,
            # two sums of the same seconds may differ by rounding
            bound_seconds=min(self._bound_seconds(), self.simulation.seconds),
            checkpoints=find_checkpoints(step, problem, self.schedule),
            recomputed=recomputed_names(step, self.schedule),
            moved=self.captured.moved,
            fetch_seconds=tuple(problem.ops[op].seconds for op in fetch_ops(step)),
            fetched=tuple(step.ops[self.schedule[place]].name for place in fetched_values(step, self.schedule)),
            moved_bytes=moved_bytes(step, problem, self.schedule),
            modules=module_shares(step, problem, self.schedule, study.simulated(self.schedule).peak_step),
            curve=_kept_points(study.curve),
            sizes=study.pool.served.get(self.schedule, {}) if study.pool is not None else {},
        )

    def _bound_seconds(self) -> float:
        """No schedule is faster; where values may be moved, what computes alone is all that is known."""
        if self.captured.moved:
            return self.study.origin.eager.seconds
        return lower_bound_seconds(self.study.planned, self.budget_bytes)


def _kept_points(curve: Sequence[Candidate]) -> tuple[KeptPoint, ...]:
    few = thinned(curve, MOST_KEPT)
    return tuple(KeptPoint(c.peak_bytes, c.seconds, c.planner, runs_of(c.schedule)) for c in few)
