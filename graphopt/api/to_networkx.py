"""The graph that users get: ops and values of a problem, a captured graph, a planned model or a training step."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from graphopt.api.optimized import Optimized
from graphopt.base.errors import UsageError
from graphopt.formats.model_graph import planned_graphs, step_graph
from graphopt.formats.problem_graph import problem_graph
from graphopt.graph.step_graph import StepGraph
from graphopt.problem.problem import Problem
from graphopt.step.train_step import TrainStep


def to_networkx(
    source: Problem | StepGraph | Optimized | TrainStep, schedule: Sequence[int] | None = None
) -> nx.DiGraph:
    """A directed graph without cycles of ops and values, for networkx to search, draw and save.

    `source` is what `optimize()` leaves at `model.graphopt`, a `train_step()`, a StepGraph, or a Problem, which may
    come with a `schedule` of op ids. A training step's graphs are those of its micro-batches. Nodes and their
    attributes (name, kind, bytes, seconds, workspace_bytes, backward, recomputable, module_path, source, and by the
    plan kept, recomputed and steps) are those of `graphopt.formats`' `problem_graph` and `step_graph`.

    Raises UsageError where nothing is planned yet or `source` is something else, ScheduleError for a schedule of
    another problem.
    """
    if isinstance(source, Problem):
        return problem_graph(source, schedule)
    if schedule is not None:
        raise UsageError("a schedule goes with a Problem; a planned model has its own")
    if isinstance(source, StepGraph):
        return step_graph(source)
    if isinstance(source, (Optimized, TrainStep)):
        if not source.planned_graphs:
            raise UsageError("nothing is planned yet: run a training step first, or give example_inputs")
        return planned_graphs(source.planned_graphs)
    raise UsageError(
        f"to_networkx() takes model.graphopt, a train_step, a Problem or a StepGraph, got {type(source).__name__}"
    )
