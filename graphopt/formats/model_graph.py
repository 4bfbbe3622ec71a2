"""Captured graphs as one networkx graph: the problem's ops and values, with what the model says of them."""

from __future__ import annotations

from collections.abc import Iterable

import networkx as nx

from graphopt.formats.problem_graph import op_key, problem_graph, value_key
from graphopt.graph.step_graph import StepGraph, to_problem
from graphopt.plan.checkpoints import find_checkpoints
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule


def planned_graphs(graphs: Iterable[PlannedGraph]) -> nx.DiGraph:
    """Planned graphs beside each other, each node with the name of its `graph`.

    Where there are several, nodes are named "graph2.op3". The rest is as in `step_graph`.
    """
    parts = []
    for planned in graphs:
        captured = planned.captured
        part = step_graph(captured.step, captured.problem, planned.schedule)
        checkpoints = find_checkpoints(captured.step, captured.problem, planned.schedule)
        kept = {checkpoint.value for checkpoint in checkpoints}
        for number, value in enumerate(captured.step.values):
            part.nodes[value_key(number)]["kept"] = value.name in kept
        nx.set_node_attributes(part, captured.name, "graph")
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    return nx.union_all(parts, rename=[f"graph{number}." for number in range(1, len(parts) + 1)])


def step_graph(step: StepGraph, problem: Problem | None = None, schedule: Schedule | None = None) -> nx.DiGraph:
    """A captured graph as `problem_graph` has it; without a problem, which holds the prices, ops have none.

    An op's `name` is that of its fx node; it also has its `target` (the operator), `random`, `module_path`, `source`
    ("model.py:12 in forward", "" where unknown) and `writes`, the resident values that it writes in place
    ("value1 value4"). Those are no edges: the next step reads what is written. A value also has its `shape`
    ("8x128"), `dtype`, and as `kind` one of "resident", "activations", "outputs", "tangents" and "gradients".
    """
    unpriced = len(step.compute_nodes)
    graph = problem_graph(problem or to_problem(step, [0.0] * unpriced, [0] * unpriced), schedule)
    for position, op in enumerate(step.ops):
        node = graph.nodes[op_key(position)]
        node.update(
            name=op.name,
            target=str(op.node.target) if op.node is not None else "",
            random=op.random,
            module_path=op.module_path,
            source=op.source,
            writes=" ".join(map(value_key, op.writes)),
        )
        if problem is None:
            del node["seconds"], node["workspace_bytes"]
    for number, value in enumerate(step.values):
        shape = "x".join(map(str, value.shape))
        graph.nodes[value_key(number)].update(
            name=value.name, kind=value.kind, bytes=value.bytes, shape=shape, dtype=value.dtype
        )
    return graph
