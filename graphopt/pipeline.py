"""The pipeline: joint graph -> StepGraph -> Problem -> Schedule -> GraphPlan -> GraphModules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from graphopt.capture import build_step_graph
from graphopt.cost_models import COST_MODELS
from graphopt.emit import Emitted, emit, generator_state_bytes
from graphopt.errors import InfeasibleError, PlanMismatchError, UsageError
from graphopt.passes.own_gradients import own_gradients
from graphopt.passes.specialize import specialize
from graphopt.passes.split_dropout import split_dropout
from graphopt.plan import GraphPlan
from graphopt.planners import PLANNERS, minimum_bytes
from graphopt.problem import Problem
from graphopt.report.checkpoints import find_checkpoints, recomputed_names
from graphopt.schedule import Schedule, Simulation, check_schedule, simulate
from graphopt.stepgraph import StepGraph, to_problem


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
class CapturedGraph:
    """A step graph and its problem: all that is needed to plan it."""

    name: str
    break_reason: str
    step: StepGraph
    problem: Problem

    @cached_property
    def eager(self) -> Simulation:
        """Every op once, in the captured order."""
        return simulate(self.problem, tuple(range(len(self.problem.ops))))

    @cached_property
    def random_bytes(self) -> int:
        """The most that saved generator states can take, were every random op recomputed."""
        return generator_state_bytes(self.step, 2 * tuple(range(len(self.problem.ops))))

    @cached_property
    def minimum_bytes(self) -> int:
        """The least bytes of its own in which the graph runs."""
        return minimum_bytes(self.problem) + self.random_bytes


@dataclass(frozen=True)
class PlannedGraph:
    """A captured graph with its plan, what the simulator says of it, and the code it became."""

    captured: CapturedGraph
    plan: GraphPlan
    simulation: Simulation
    emitted: Emitted


def capture_graph(
    joint: fx.GraphModule,
    num_forward_outputs: int,
    static_inputs: list[int],
    choice: Choice,
    name: str,
    break_reason: str = "",
) -> CapturedGraph:
    """Make AOTAutograd's joint graph ready to plan: cleaned, read as ops and values, priced."""
    specialize(joint)
    split_dropout(joint)
    own_gradients(joint, num_forward_outputs)
    step = build_step_graph(joint, num_forward_outputs, static_inputs)
    costs = COST_MODELS[choice.cost_model](step.compute_nodes)
    problem = to_problem(step, [cost.seconds for cost in costs], [cost.workspace_bytes for cost in costs])
    return CapturedGraph(name, break_reason, step, problem)


def plan_graph(captured: CapturedGraph, budget_bytes: int, choice: Choice) -> PlannedGraph:
    """Plan and emit one graph inside `budget_bytes` of its own values.

    Raises InfeasibleError where the planner finds no schedule that fits, PlanMismatchError where
    plans were given and none is for this graph.
    """
    schedule = _kept_schedule(captured, choice) or _new_schedule(captured, budget_bytes, choice)
    simulation = simulate(captured.problem, schedule)
    random_bytes = generator_state_bytes(captured.step, schedule)
    if simulation.peak_bytes + random_bytes > budget_bytes:
        raise InfeasibleError(budget_bytes, simulation.peak_bytes + random_bytes)
    plan = GraphPlan(
        name=captured.name,
        graph_hash=captured.step.graph_hash,
        planner=choice.planner,
        cost_model=choice.cost_model,
        schedule=schedule,
        budget_bytes=budget_bytes,
        peak_bytes=simulation.peak_bytes + random_bytes,
        eager_peak_bytes=captured.eager.peak_bytes,
        minimum_bytes=captured.minimum_bytes,
        seconds=simulation.seconds,
        eager_seconds=captured.eager.seconds,
        checkpoints=find_checkpoints(captured.step, captured.problem, schedule),
        recomputed=recomputed_names(captured.step, schedule),
    )
    return PlannedGraph(captured, plan, simulation, emit(captured.step, schedule))


def _new_schedule(captured: CapturedGraph, budget_bytes: int, choice: Choice) -> Schedule:
    problem = captured.problem
    if captured.eager.peak_bytes <= budget_bytes:
        return tuple(range(len(problem.ops)))
    return PLANNERS[choice.planner](problem, budget_bytes - captured.random_bytes)


def _kept_schedule(captured: CapturedGraph, choice: Choice) -> Schedule | None:
    if choice.kept is None:
        return None
    kept = choice.kept.get(captured.step.graph_hash)
    if kept is None:
        raise PlanMismatchError(
            f"the plan was made for another graph: {captured.name!r} has hash {captured.step.graph_hash}, the plan "
            f"knows {', '.join(choice.kept)}; plan again with the model, shapes and torch version of this run"
        )
    return check_schedule(captured.problem, kept.schedule)
