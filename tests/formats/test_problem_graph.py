"""A problem as a networkx graph: it holds the whole problem, and the schedule that it was given."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphopt
from graphopt.base.errors import ScheduleError, UsageError
from graphopt.formats.problem_graph import problem_graph
from graphopt.problem.problem import Op, Problem, Value
from tests.support.problems import problems, random_schedule

CHAIN = Problem(
    (Value(1), Value(10), Value(20), Value(30)),
    (Op("f", 1.0, 5, (0,), (1,)), Op("g", 2.0, 0, (1,), (2,)), Op("b", 3.0, 0, (1, 2), (3,), True, False, True)),
    (3,),
)


def problem_of(graph: nx.DiGraph) -> Problem:
    """The problem that a graph shows."""
    ops = sorted(
        (n for n, data in graph.nodes.items() if data["kind"] == "op"), key=lambda n: graph.nodes[n]["position"]
    )
    values = sorted(set(graph) - set(ops), key=lambda name: int(name.removeprefix("value")))
    number = {name: i for i, name in enumerate(values)}
    keys = ("name", "seconds", "workspace_bytes")
    flags = ("backward", "recomputable", "pinned")
    return Problem(
        tuple(Value(graph.nodes[name]["bytes"]) for name in values),
        tuple(
            Op(
                *(graph.nodes[op][key] for key in keys),
                tuple(sorted(number[v] for v in graph.predecessors(op))),
                tuple(sorted(number[v] for v in graph.successors(op))),
                *(graph.nodes[op][key] for key in flags),
            )
            for op in ops
        ),
        tuple(number[name] for name in values if graph.nodes[name]["kind"] == "outputs"),
    )


def in_order(problem: Problem) -> Problem:
    """The same problem, ids sorted where their order says nothing; resident values are no outputs of it."""
    ops = (
        Op(op.name, op.seconds, op.workspace_bytes, tuple(sorted(op.inputs)), tuple(sorted(op.outputs)), op.backward,
           op.recomputable, op.pinned)
        for op in problem.ops
    )  # fmt: skip
    return Problem(problem.values, tuple(ops), tuple(sorted(v for v in problem.outputs if problem.producer[v] >= 0)))


@given(problem=problems)
def test_the_graph_holds_the_whole_problem(problem: Problem) -> None:
    graph = problem_graph(problem)
    assert nx.is_directed_acyclic_graph(graph) and problem_of(graph) == in_order(problem)
    side = nx.get_node_attributes(graph, "bipartite")
    assert all(side[start] != side[end] for start, end in graph.edges)
    assert not {"steps", "recomputed", "kept"} & {key for data in graph.nodes.values() for key in data}


@given(problem=problems, seed=st.integers(0, 99))
def test_the_schedule_can_be_read_off_it(problem: Problem, seed: int) -> None:
    schedule = random_schedule(problem, seed)
    ops = [data for data in problem_graph(problem, schedule).nodes.values() if data["kind"] == "op"]
    at_step = {int(step): data["position"] for data in ops for step in data["steps"].split()}
    assert tuple(at_step[step] for step in range(len(schedule))) == schedule
    assert all(data["recomputed"] == (schedule.count(data["position"]) > 1) for data in ops)


def test_what_the_backward_reads_is_kept_unless_it_is_made_again() -> None:
    graph = problem_graph(CHAIN, (0, 1, 2))
    assert [graph.nodes[f"value{i}"]["kept"] for i in range(4)] == [False, True, True, False]
    backward = Op("b", 3.0, 0, (1,), (3,), True, False)
    again = Problem(CHAIN.values, (*CHAIN.ops[:2], backward, Op("c", 1.0, 0, (2, 3), (4,), True)), (4,))
    again = Problem((*again.values, Value(1)), again.ops, again.outputs)
    graph = problem_graph(again, (0, 1, 2, 1, 3))
    assert {n for n, kept in graph.nodes(data="kept") if kept} == {"value1"}
    assert {n for n, recomputed in graph.nodes(data="recomputed") if recomputed} == {"op1", "value2"}


def test_a_schedule_of_another_problem_is_refused() -> None:
    with pytest.raises(ScheduleError, match="never run"):
        problem_graph(CHAIN, (0, 1))
    with pytest.raises(UsageError, match=r"takes model\.graphopt, .* got int"):
        graphopt.to_networkx(7)  # type: ignore[arg-type]
    assert nx.utils.graphs_equal(graphopt.to_networkx(CHAIN, (0, 1, 2)), problem_graph(CHAIN, (0, 1, 2)))
