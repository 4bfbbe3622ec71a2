"""The inner loops keep their promises, as machine code and as the Python that defines them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import mean

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.planners import pareto_curve
from graphopt.planners.curves.curve import at_most
from graphopt.planners.moves.evict import descend
from graphopt.planners.moves.fill import fill
from graphopt.planners.native.anneal_round import AnnealRound
from graphopt.planners.native.build import library
from graphopt.planners.native.compiled import CompiledLoops
from graphopt.planners.native.plain import PlainLoops
from graphopt.planners.schedules.flow import SINK, SOURCE, Network
from graphopt.planners.schedules.memory_profile import in_own_order, point, profile_of
from graphopt.planners.study.study import Study
from graphopt.problem.problem import Op, Problem, Value, check_problem
from graphopt.problem.schedule import check_schedule, simulate
from tests.support.problems import problems, random_problem, random_schedule

seeds = st.integers(0, 10**6)
shares = st.floats(0.0, 1.0)
kinds = pytest.mark.parametrize(
    "compiled", [pytest.param(True, marks=pytest.mark.skipif(library() is None, reason="needs a C++ compiler")), False]
)
compiled_only = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


def is_within(part: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether all of `part` comes in `whole`, in that order."""
    left = iter(whole)
    return all(step in left for step in part)


@kinds
def test_a_study_has_the_loops_that_are_asked_for(compiled: bool) -> None:
    assert isinstance(Study(random_problem(1), compiled=compiled).loops, CompiledLoops if compiled else PlainLoops)


@kinds
@given(problem=problems, seed=seeds)
def test_a_profile_is_what_the_simulator_says(compiled: bool, problem: Problem, seed: int) -> None:
    schedule = random_schedule(problem, seed)
    line, result = profile_of(Study(problem, compiled=compiled), schedule), simulate(problem, schedule)
    assert line.live_bytes.tolist() == result.live_bytes.tolist()
    assert line.peak_bytes == result.peak_bytes
    assert line.seconds == pytest.approx(result.seconds)


@kinds
@given(problem=problems, seed=seeds, share=shares, moves=st.integers(1, 20), longest=st.integers(1, 30))
def test_lowering_adds_recomputations_that_are_valid(
    compiled: bool, problem: Problem, seed: int, share: float, moves: int, longest: int
) -> None:
    line = profile_of(Study(problem, compiled=compiled), random_schedule(problem, seed))
    arguments = (line.steps, int(line.peak_bytes * share), moves, longest)
    found = line.study.loops.lower(*arguments)
    if found is not None:
        check_schedule(problem, found.tolist())
        assert is_within(line.steps.tolist(), found.tolist())
        assert len(line.steps) < len(found) <= len(line.steps) + moves * (longest + 1)
        again = Study(problem, compiled=compiled).loops.lower(*arguments)
        assert again is not None
        assert again.tolist() == found.tolist()


def two_wide() -> Problem:
    """Two values that could go over `peak`: `cheap` costs a second for 30 bytes, `dear` ten for 30."""
    ops = (
        Op("cheap", 1.0, 0, (), (0,)),
        Op("dear", 10.0, 0, (), (1,)),
        Op("peak", 1.0, 50, (), (2,)),
        Op("end", 1.0, 0, (0, 1, 2), (3,)),
    )
    return check_problem(Problem((Value(30), Value(30), Value(1), Value(1)), ops, (3,)))


@kinds
def test_the_cheapest_goes_first(compiled: bool) -> None:
    line = in_own_order(Study(two_wide(), compiled=compiled))
    found = [line.study.loops.lower(line.steps, target, 9, 9) for target in (110, 81, 80, 51)]
    assert [None if steps is None else steps.tolist() for steps in found] == [
        [0, 1, 2, 0, 3],
        [0, 1, 2, 0, 3],
        [0, 1, 2, 0, 1, 3],
        [0, 1, 2, 0, 1, 3],
    ]


@kinds
@given(problem=problems, seed=seeds, share=shares)
def test_filling_under_a_level_drops_recomputations_and_stays_under_it(
    compiled: bool, problem: Problem, seed: int, share: float
) -> None:
    line = profile_of(Study(problem, compiled=compiled), random_schedule(problem, seed))
    level = int(line.peak_bytes * (1 + share))
    found = line.study.loops.fill_under(line.steps, level).tolist()
    check_schedule(problem, found)
    assert is_within(found, line.steps.tolist())
    assert simulate(problem, found).peak_bytes <= level


@kinds
@given(problem=problems, seed=seeds, batches=st.integers(1, 50))
def test_a_trajectory_is_what_the_simulator_says_and_ends_without_recomputation(
    compiled: bool, problem: Problem, seed: int, batches: int
) -> None:
    study = Study(problem, compiled=compiled)
    start = point(study, random_schedule(problem, seed), "search")
    steps = start.schedule
    for found in fill(study, start, "search", batches):
        assert is_within(found.schedule, steps)
        assert len(found.schedule) < len(steps)
        steps = check_schedule(problem, found.schedule)
        result = simulate(problem, steps)
        assert (result.peak_bytes, pytest.approx(result.seconds)) == (found.peak_bytes, found.seconds)
    assert steps == tuple(range(len(problem.ops)))


@kinds
def test_a_trajectory_far_above_a_known_curve_ends(compiled: bool) -> None:
    study = Study(random_problem(3, 30), compiled=compiled)
    known = pareto_curve(study)
    for seed in descend(study, in_own_order(study).steps, "search", 0.9):
        whole, ended = fill(study, seed, "search"), fill(study, seed, "search", known=known)
        assert [p.schedule for p in ended] == [p.schedule for p in whole[: len(ended)]]
        for found in ended[:-1]:
            best, once = at_most(known, found.peak_bytes).seconds, study.problem.seconds
            assert found.seconds <= once + 1.5 * (best - once) + 0.01 * once


@compiled_only
@given(problem=problems, share=shares)
def test_walks_are_valid_and_keep_the_order(problem: Problem, share: float) -> None:
    study = Study(problem)
    found = study.loops.walk(int(in_own_order(study).peak_bytes * share))
    if found is not None:
        check_schedule(problem, found.tolist())
        assert tuple(dict.fromkeys(found.tolist())) == tuple(range(len(problem.ops)))


@compiled_only
@settings(max_examples=50)
@given(seed=seeds, ops=st.integers(6, 60), share=shares, moves=st.integers(1, 2000))
def test_annealed_schedules_are_valid_inside_and_take_the_seconds_that_are_said(
    seed: int, ops: int, share: float, moves: int
) -> None:
    problem = random_problem(seed, ops, training=True)
    study = Study(problem)
    first = in_own_order(study)
    low = descend(study, first.steps, "search", 0.9)
    level = low[-1].peak_bytes + int(share * (first.peak_bytes - low[-1].peak_bytes)) if low else first.peak_bytes
    for start in [p for p in low if p.peak_bytes <= level][:2]:
        what = AnnealRound(level, seed, 2000, moves, start.seconds, math.inf)
        found = study.loops.anneal(start.steps, what)
        if found is not None:
            result = simulate(problem, check_schedule(problem, found[0].tolist()))
            assert result.peak_bytes <= level
            assert result.seconds == pytest.approx(found[1])
            assert result.seconds < start.seconds
            again = Study(problem).loops.anneal(start.steps, what)
            assert again is not None
            assert again[0].tolist() == found[0].tolist()


@st.composite
def networks(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Edges between nodes 0 to 8: tail, head, capacity."""
    nodes = st.integers(0, 8)
    return draw(st.lists(st.tuples(nodes, nodes, st.integers(0, 20)).filter(lambda e: e[0] != e[1]), max_size=30))


def residual_side(edges: Sequence[tuple[int, int, int]]) -> tuple[int, set[int]]:
    """The value of the maximum flow, and the nodes that its residual network reaches from the source: networkx's."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(9))
    for tail, head, capacity in edges:
        known = graph.get_edge_data(tail, head, {"capacity": 0})["capacity"]
        graph.add_edge(tail, head, capacity=known + capacity)
    residual = nx.algorithms.flow.edmonds_karp(graph, SOURCE, SINK)
    open_edges = [(a, b) for a, b, data in residual.edges(data=True) if data["flow"] < data["capacity"]]
    reached = nx.DiGraph(open_edges)
    reached.add_node(SOURCE)
    return residual.graph["flow_value"], {SOURCE, *nx.descendants(reached, SOURCE)}


@kinds
@given(edges=networks(), changes=st.lists(st.lists(st.integers(0, 20), min_size=30, max_size=30), max_size=3))
def test_cuts_are_the_minimum_nearest_to_the_source_also_after_capacities_change(
    compiled: bool, edges: list[tuple[int, int, int]], changes: list[list[int]]
) -> None:
    network = Network(Study(random_problem(0), compiled=compiled), 9)
    numbers = np.array([network.edge(*edge) for edge in edges], dtype=np.int64)
    for capacities in [None, *changes]:
        if capacities is not None:
            edges = [(a, b, new) for (a, b, _), new in zip(edges, capacities, strict=False)]
            network.price(numbers, np.array([capacity for *_, capacity in edges], dtype=np.int64))
        flow, expected = residual_side(edges)
        side = network.source_side()
        assert {node for node, there in enumerate(side) if there} == expected
        assert sum(c for a, b, c in edges if side[a] and not side[b]) == flow


@compiled_only
def test_the_definitions_find_nearly_as_good_curves() -> None:
    """Without walks and annealing, and with evictions priced in another order, budgets are met all the same."""
    ratios, overheads = [], []
    for seed in range(12):
        problem = random_problem(seed, 24, training=True)
        own, plain = pareto_curve(Study(problem)), pareto_curve(Study(problem, compiled=False))
        ratios.append(plain[0].peak_bytes / own[0].peak_bytes)
        for budget in np.linspace(max(own[0].peak_bytes, plain[0].peak_bytes), own[-1].peak_bytes, 8).tolist():
            overheads.append(at_most(plain, budget).seconds / at_most(own, budget).seconds)
    assert mean(ratios) <= 1.02
    assert mean(overheads) <= 1.02


@given(problem=problems)
@settings(max_examples=30, deadline=None)
def test_a_curve_of_the_definitions_is_what_the_simulator_says(problem: Problem) -> None:
    for found in pareto_curve(Study(problem, compiled=False)):
        result = simulate(problem, check_schedule(problem, found.schedule))
        assert (result.peak_bytes, pytest.approx(result.seconds)) == (found.peak_bytes, found.seconds)


@kinds
def test_bytes_beyond_the_exact_numbers_of_floating_point(compiled: bool) -> None:
    """2**53 + 1 is no number in floating point; bytes are whole numbers throughout."""
    rng = random.Random(5)
    problem = random_problem(5, 16, training=True)
    values = tuple(Value(value.bytes * (1 << 53) + rng.randrange(3)) for value in problem.values)
    large = Problem(values, problem.ops, problem.outputs)  # more than `check_problem` lets through
    for found in pareto_curve(Study(large, compiled=compiled)):
        assert simulate(large, check_schedule(large, found.schedule)).peak_bytes == found.peak_bytes
