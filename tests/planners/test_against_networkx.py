"""What the planners read off a graph, beside networkx's own answers. (Flows and cuts: native/test_loops.py.)"""

from __future__ import annotations

import random
from collections.abc import Iterable

import networkx as nx
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.planners import Study
from graphopt.planners.bounds.wanted import wanted_in_any_order
from graphopt.planners.chains.cutpoints import border_values, forward_part
from graphopt.planners.chains.regions import regions_of
from graphopt.planners.orders.unrelated import unrelated
from graphopt.planners.schedules.recompute import missing_ops
from graphopt.problem.problem import Problem
from tests.support.problems import problems

Node = tuple[str, int]


def graph_of(problem: Problem) -> nx.DiGraph:
    """Ops and the values that they make, in the direction of the data; resident values are left out."""
    graph = nx.DiGraph()
    graph.add_nodes_from(("op", op_id) for op_id in range(len(problem.ops)))
    for op_id, op in enumerate(problem.ops):
        graph.add_edges_from((("op", op_id), ("value", value)) for value in op.outputs)
        graph.add_edges_from((("value", v), ("op", op_id)) for v in op.inputs if problem.producer[v] >= 0)
    return graph


def ops_of(nodes: Iterable[Node]) -> set[int]:
    return {number for kind, number in nodes if kind == "op"}


@given(problem=problems)
def test_what_crosses_a_position_is_the_boundary_of_the_ops_before_it(problem: Problem) -> None:
    forward, graph = forward_part(problem), graph_of(problem)
    for position in range(1, forward.end):
        before = {("op", op_id) for op_id in range(position)}
        before |= {("value", v) for v, maker in enumerate(problem.producer) if 0 <= maker < position}
        after = {("op", op_id) for op_id in range(position, forward.end)}
        crossing = {value for (_, value), _ in nx.edge_boundary(graph, before, after)}
        assert border_values(problem, forward, [position]) == crossing
        assert forward.crossing[position] == sum(problem.values[v].bytes for v in crossing)


@given(problem=problems)
def test_a_value_that_alone_crosses_a_position_dominates_what_comes_after_it(problem: Problem) -> None:
    forward, graph = forward_part(problem), graph_of(problem)
    for position in range(1, forward.end):
        crossing = border_values(problem, forward, [position])
        rooted = graph.subgraph(n for n in graph if n[0] == "value" or n[1] < forward.end).copy()
        rooted.add_edges_from(
            ("root", ("op", op_id)) for op_id in range(position) if not rooted.in_degree(("op", op_id))
        )
        reached = {op_id for op_id in ops_of(nx.descendants(rooted, "root")) if op_id >= position}
        if len(crossing) == 1:
            assert reached <= ops_of(dominated(rooted, ("value", crossing.pop())))
        elif not crossing:
            assert not reached


def dominated(rooted: nx.DiGraph, node: Node) -> set[Node]:
    """All that every way from the root leads to through `node`."""
    above = nx.immediate_dominators(rooted, "root")
    tree = nx.DiGraph((parent, child) for child, parent in above.items() if parent not in (None, child))
    return nx.descendants(tree, node) if node in tree else set()


@settings(max_examples=60, deadline=None)
@given(problem=problems, most=st.integers(1, 8))
def test_borders_are_the_boundaries_of_regions(problem: Problem, most: int) -> None:
    study = Study(problem)
    regions, graph = regions_of(study, most), graph_of(problem)
    if regions is None:
        return
    parts = [[op_id for op_id in part.ops if op_id >= 0] for part in regions.parts]
    for number, border in enumerate(regions.border):
        before = {("op", op_id) for part in parts[:number] for op_id in part if op_id < regions.end}
        made = {("value", v) for v, maker in enumerate(problem.producer) if ("op", maker) in before}
        after = {("op", op_id) for part in parts[number:] for op_id in part}
        crossing = {value for (_, value), _ in nx.edge_boundary(graph, made, after)}
        assert border == crossing - study.held


@given(problem=problems)
def test_unrelated_ops_are_neither_ancestors_nor_descendants(problem: Problem) -> None:
    graph, study, first = graph_of(problem), Study(problem), problem.first_backward
    for op_id in range(len(problem.ops)):
        related = ops_of(nx.ancestors(graph, ("op", op_id)) | nx.descendants(graph, ("op", op_id))) | {op_id}
        half = range(first) if op_id < first else range(first + 1, len(problem.ops)) if op_id > first else ()
        assert unrelated(study, op_id) == sorted(set(half) - related)


@given(problem=problems)
def test_wanted_are_values_of_ancestors_that_descendants_read(problem: Problem) -> None:
    graph, wanted = graph_of(problem), wanted_in_any_order(problem)
    for op_id in range(len(problem.ops)):
        before, after = nx.ancestors(graph, ("op", op_id)), nx.descendants(graph, ("op", op_id))
        expected = {
            value
            for value, maker in enumerate(problem.producer)
            if ("op", maker) in before
            and (value in problem.outputs or any(("op", reader) in after for reader in problem.readers[value]))
        }
        assert set(wanted(op_id)) == expected


@given(problem=problems, seed=st.integers(0, 10**6))
def test_missing_ops_are_the_ancestors_that_no_value_alive_cuts_off(problem: Problem, seed: int) -> None:
    rng = random.Random(seed)
    alive = {v for v in range(len(problem.values)) if rng.random() < 0.4}
    wanted = rng.sample(range(len(problem.values)), rng.randint(0, len(problem.values)))
    graph = graph_of(problem)
    graph.remove_nodes_from([("value", v) for v in alive])
    expected: set[int] = set()
    for value in wanted:
        if ("value", value) in graph:
            expected |= ops_of(nx.ancestors(graph, ("value", value)))
    assert missing_ops(Study(problem), wanted, alive) == sorted(expected)
