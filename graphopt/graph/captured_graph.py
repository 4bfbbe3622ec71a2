"""CapturedGraph: one joint graph as it was captured, read as ops and values, and priced."""

from __future__ import annotations

from dataclasses import dataclass, replace

from graphopt.graph.step_graph import StepGraph
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule


@dataclass(frozen=True)
class WholeBackward:
    """The step with all of its tangents, beside one that has fewer; the forwards are the same, node by node.

    `kept` names the nodes of the forward that are saved for it alone, as they cannot be made again.
    """

    step: StepGraph
    kept: frozenset[str]


@dataclass(frozen=True)
class CapturedGraph:
    """A step graph and its problem: all that is needed to plan it.

    `break_reason` says why and where the capture ended, "" where it is the whole model. `whole` is None where the
    step has all tangents.
    """

    name: str
    break_reason: str
    step: StepGraph
    problem: Problem
    whole: WholeBackward | None = None

    @property
    def captured_schedule(self) -> Schedule:
        """Every op once, in the captured order."""
        return tuple(range(len(self.problem.ops)))


def with_loss_bytes(graph: CapturedGraph, loss_bytes: int) -> CapturedGraph:
    """The graph with a loss, computed outside of it, that takes so many bytes beside what the graph holds for it.

    The gradients that come back from the loss are a part of them.
    """
    at = graph.step.boundary
    boundary = graph.problem.ops[at]
    tangent_bytes = sum(graph.problem.values[value].bytes for value in boundary.outputs)
    boundary = replace(boundary, workspace_bytes=max(loss_bytes - tangent_bytes, 0))
    ops = (*graph.problem.ops[:at], boundary, *graph.problem.ops[at + 1 :])
    return replace(graph, problem=replace(graph.problem, ops=ops))
