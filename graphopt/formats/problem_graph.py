"""A problem as a networkx graph: ops and values are its nodes, and edges lead the way that data goes. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from graphopt.problem.problem import Problem
from graphopt.problem.schedule import check_schedule


def problem_graph(problem: Problem, schedule: Sequence[int] | None = None) -> nx.DiGraph:
    """The problem as a directed graph without cycles, from each value to the ops that read it and on to what they make.

    Nodes are named "op3" and "value7", by place in the problem. An op has `kind` "op", `name`, `position`, `seconds`,
    `workspace_bytes`, `backward`, `recomputable` and `pinned`; a value has `kind` ("resident", "outputs", or
    "activations" for all else), `name` and `bytes`. `bipartite` is 0 for ops and 1 for values, as networkx has it.

    With a schedule an op says at which `steps` of it the op runs ("3 17"), and both say whether they are `recomputed`;
    a value says whether it is `kept`: made by the forward, and read by the backward before it is made again.
    Raises ScheduleError where the schedule is not one of this problem's.
    """
    graph = nx.DiGraph()
    for position, op in enumerate(problem.ops):
        graph.add_node(
            op_key(position),
            kind="op",
            name=op.name,
            bipartite=0,
            position=position,
            seconds=float(op.seconds),
            workspace_bytes=op.workspace_bytes,
            backward=op.backward,
            recomputable=op.recomputable,
            pinned=op.pinned,
        )
    outputs = set(problem.outputs)
    for number, value in enumerate(problem.values):
        kind = "resident" if problem.producer[number] < 0 else "outputs" if number in outputs else "activations"
        graph.add_node(value_key(number), kind=kind, name=value_key(number), bipartite=1, bytes=value.bytes)
    for position, op in enumerate(problem.ops):
        graph.add_edges_from((value_key(value), op_key(position)) for value in op.inputs)
        graph.add_edges_from((op_key(position), value_key(value)) for value in op.outputs)
    if schedule is not None:
        _add_schedule(graph, problem, check_schedule(problem, schedule))
    return graph


def op_key(position: int) -> str:
    """The node of an op."""
    return f"op{position}"


def value_key(number: int) -> str:
    """The node of a value."""
    return f"value{number}"


def _add_schedule(graph: nx.DiGraph, problem: Problem, schedule: Sequence[int]) -> None:
    steps: list[list[int]] = [[] for _ in problem.ops]
    for step, position in enumerate(schedule):
        steps[position].append(step)
    for position, mine in enumerate(steps):
        graph.nodes[op_key(position)].update(steps=" ".join(map(str, mine)), recomputed=len(mine) > 1)
    kept = _kept(problem, schedule)
    for number, maker in enumerate(problem.producer):
        again = maker >= 0 and len(steps[maker]) > 1
        graph.nodes[value_key(number)].update(recomputed=again, kept=number in kept)


def _kept(problem: Problem, schedule: Sequence[int]) -> set[int]:
    turn = next((step for step, position in enumerate(schedule) if problem.ops[position].backward), len(schedule))
    made = {value for position in schedule[:turn] for value in problem.ops[position].outputs}
    kept: set[int] = set()
    for position in schedule[turn:]:
        kept |= made.intersection(problem.ops[position].inputs)
        made.difference_update(problem.ops[position].outputs)
    return kept
