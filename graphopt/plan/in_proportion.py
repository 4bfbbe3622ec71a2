"""A guess at a graph in pieces, from the graph as it is."""

from __future__ import annotations

from dataclasses import replace

from graphopt.graph.captured_graph import CapturedGraph
from graphopt.problem.problem import Problem, Value


def in_proportion(graph: CapturedGraph, count: int) -> Problem:
    """The problem with each value that pieces divide as small as one of its pieces.

    Time is the whole's. What is put together again, and what several passes keep of all pieces, is not counted: it says
    which forms are worth making, and they are judged by their own.
    """
    shares = graph.forms.division.shares
    by_value = {
        v: max(count * shares[info.name], 1.0) for v, info in enumerate(graph.step.values) if info.name in shares
    }
    values = tuple(Value(int(value.bytes / by_value.get(v, 1.0))) for v, value in enumerate(graph.problem.values))
    ops = tuple(
        replace(
            op, workspace_bytes=int(op.workspace_bytes / max((by_value.get(v, 1.0) for v in op.outputs), default=1.0))
        )
        for op in graph.problem.ops
    )
    return replace(graph.problem, values=values, ops=ops)
