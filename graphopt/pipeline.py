"""The pipeline: joint graph -> StepGraph -> Problem -> Schedule -> GraphPlan -> GraphModules."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

from torch import fx

from graphopt.capture import build_step_graph
from graphopt.cost_models import COST_MODELS, OpCost
from graphopt.errors import InfeasibleError, PlanMismatchError
from graphopt.infeasible import budget_error
from graphopt.nodes import is_collective
from graphopt.passes.free_shapes import free_shapes
from graphopt.passes.own_gradients import own_gradients
from graphopt.passes.skip_clones import skip_clones
from graphopt.passes.skip_copies import skip_copies
from graphopt.passes.specialize import specialize
from graphopt.passes.split_dropout import split_dropout
from graphopt.plan import GraphPlan
from graphopt.planned import CapturedGraph, Choice, PlannedGraph
from graphopt.planners import local
from graphopt.schedule import Schedule, simulate
from graphopt.settle import settle
from graphopt.stepgraph import StepGraph, to_problem, with_storage_bytes

#: A pass over the joint graph and the number of its forward outputs: what becomes of the gradients.
HandOver = Callable[[fx.GraphModule, int], object]


def capture_graph(
    joint: fx.GraphModule,
    num_forward_outputs: int,
    static_inputs: list[int],
    choice: Choice,
    name: str,
    break_reason: str = "",
    hand_over: HandOver = own_gradients,
) -> CapturedGraph:
    """Make AOTAutograd's joint graph ready to plan: cleaned, read as ops and values, priced.

    `hand_over` is the pass that decides what becomes of the gradients.
    """
    specialize(joint)
    skip_copies(joint)
    skip_clones(joint)
    free_shapes(joint)
    split_dropout(joint)
    hand_over(joint, num_forward_outputs)
    step = build_step_graph(joint, num_forward_outputs, static_inputs)
    costs = COST_MODELS[choice.cost_model](step.compute_nodes)
    _warn_of_unmeasured(step, costs, choice.cost_model)
    step = with_storage_bytes(step, [cost.storage_bytes for cost in costs])
    problem = to_problem(step, [cost.seconds for cost in costs], [cost.workspace_bytes for cost in costs])
    return CapturedGraph(name, break_reason, step, problem, _kept_plan(step, choice, name))


def plan_graph(captured: CapturedGraph, budget_bytes: int, choice: Choice) -> PlannedGraph:
    """Plan one graph inside `budget_bytes` of its own values.

    Raises InfeasibleError where the planner finds no schedule that fits, PlanMismatchError where
    plans were given and none is for this graph.
    """
    schedule = (
        _kept_schedule(captured, budget_bytes) if captured.kept else _new_schedule(captured, budget_bytes, choice)
    )
    peak_bytes = captured.peak_bytes(schedule)
    if peak_bytes > budget_bytes:
        raise InfeasibleError(budget_bytes, peak_bytes)
    return PlannedGraph(captured, choice, budget_bytes, schedule, simulate(captured.problem, schedule))


def plan_within(
    captured: CapturedGraph, budget_bytes: int, resident_bytes: Mapping[str, int], choice: Choice
) -> PlannedGraph:
    """Plan one graph so that it and what is resident fit; raises BudgetError where they cannot."""
    own_bytes = budget_bytes - sum(resident_bytes.values())
    try:
        return plan_graph(captured, own_bytes, choice)
    except InfeasibleError as error:
        least = error.minimum_bytes
        raise budget_error([captured], least, budget_bytes, resident_bytes, choice.planner) from None


def _warn_of_unmeasured(step: StepGraph, costs: Sequence[OpCost], cost_model: str) -> None:
    """Say so where a plan's bytes are a guess: an op that was not measured may need scratch that nobody counts."""
    nodes = step.compute_nodes
    unmeasured = [i for i, cost in enumerate(costs) if cost.storage_bytes is None and not is_collective(nodes[i])]
    if not unmeasured or cost_model == "roofline" or len(unmeasured) == len(costs):
        return
    first = [op for op in step.ops if op.node is not None][unmeasured[0]]
    where = f" at {first.source}" if first.source else ""
    warnings.warn(
        f"graphopt: {len(unmeasured)} of {len(costs)} ops could not be measured, first {first.name}{where}; their "
        "scratch memory is not in the plan, so keep a reserve",
        stacklevel=2,
    )


def _new_schedule(captured: CapturedGraph, budget_bytes: int, choice: Choice) -> Schedule:
    if captured.eager.peak_bytes <= budget_bytes:
        return captured.captured_schedule
    if choice.planner == "auto":
        schedule = _fastest(captured, budget_bytes)
    else:
        schedule = captured.schedule_by(choice.planner, budget_bytes)
    if choice.plan_seconds:
        schedule = _improved(captured, schedule, budget_bytes, choice.plan_seconds)
    return settle(captured.step, schedule)


def _fastest(captured: CapturedGraph, budget_bytes: int) -> Schedule:
    fitting = [candidate for candidate in captured.curve if candidate.peak_bytes <= budget_bytes]
    if not fitting:
        raise InfeasibleError(budget_bytes, captured.minimum_bytes)
    return fitting[-1].schedule


def _improved(captured: CapturedGraph, schedule: Schedule, budget_bytes: int, seconds: float) -> Schedule:
    """What a local search makes of a schedule that fits; generator states that it adds may not take it over."""
    own_bytes = max(simulate(captured.problem, schedule).peak_bytes, budget_bytes - captured.most_state_bytes)
    better = settle(captured.step, local.improve(captured.problem, schedule, own_bytes, seconds))
    return better if captured.peak_bytes(better) <= budget_bytes else schedule


def _kept_schedule(captured: CapturedGraph, budget_bytes: int) -> Schedule:
    """The kept plan's schedule at the budget that it was made for; at another one the best of its curve."""
    assert captured.kept is not None and captured.kept_schedule is not None
    schedule = captured.kept_schedule
    if captured.kept.budget_bytes == budget_bytes and captured.peak_bytes(schedule) <= budget_bytes:
        return schedule
    return _fastest(captured, budget_bytes)


def _kept_plan(step: StepGraph, choice: Choice, name: str) -> GraphPlan | None:
    if choice.kept is None:
        return None
    kept = choice.kept.get(step.graph_hash)
    if kept is None:
        raise PlanMismatchError(
            f"the plan was made for another graph: {name!r} has hash {step.graph_hash}, the plan "
            f"knows {', '.join(choice.kept)}; plan again with the model, shapes and torch version of this run"
        )
    return kept
