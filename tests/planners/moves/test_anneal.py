"""Local search: never worse, better with more time, the same for the same seed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.planners import minimum_bytes, pareto_curve
from graphopt.planners.moves.anneal import improve, improve_by
from graphopt.planners.native.build import library
from graphopt.planners.reorder import reorder_curve
from graphopt.planners.sqrt_n import sqrt_n_curve
from graphopt.planners.study.study import Study
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import check_schedule, simulate
from tests.planners.test_against_optimum import optimum
from tests.support.problems import problems, random_problem, random_schedule

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


@settings(max_examples=60, deadline=None)
@given(problem=problems, share=st.floats(0.0, 1.0), seed=st.integers(0, 99))
def test_never_worse_and_inside_the_budget(problem: Problem, share: float, seed: int) -> None:
    study = Study(problem)
    curve = pareto_curve(study)
    start = curve[int(share * (len(curve) - 1))]
    found = improve_by(study, start.schedule, start.peak_bytes, 200, seed)
    check_schedule(problem, found)
    result = simulate(problem, found)
    assert result.peak_bytes <= start.peak_bytes
    assert result.seconds <= start.seconds


@pytest.mark.parametrize("seed", range(4))
def test_more_moves_are_never_worse_and_the_same_moves_the_same(seed: int) -> None:
    problem = random_problem(seed, 40, training=True)
    study = Study(problem)
    start = sqrt_n_curve(study)[0]
    seconds = []
    for moves in (0, 300, 1000, 3000):
        found = improve_by(study, start.schedule, start.peak_bytes, moves, seed)
        assert found == improve_by(Study(problem), start.schedule, start.peak_bytes, moves, seed)
        seconds.append(simulate(problem, found).seconds)
    assert seconds == sorted(seconds, reverse=True)


def test_the_optimum_is_found_nearly_always() -> None:
    """On graphs that can be tried out, from schedules that recompute at random, under all budgets that they fit."""
    reached = []
    for seed in range(4000):
        problem = random_problem(seed, 5)
        schedule = random_schedule(problem, seed + 1)
        start = simulate(problem, schedule)
        eager = simulate(problem, range(5)).peak_bytes
        if start.peak_bytes < eager:
            for peak, seconds in optimum(problem):
                if start.peak_bytes <= peak < eager and seconds < start.seconds:
                    found = improve_by(Study(problem), schedule, peak, 400, 1)
                    reached.append(simulate(problem, found).seconds <= seconds * (1 + 1e-9))
    assert len(reached) > 20
    assert sum(reached) >= 0.9 * len(reached)


def test_another_order_of_first_runs_is_kept() -> None:
    found = 0
    for seed in range(40):
        problem = random_problem(seed, 24)
        study = Study(problem)
        for start in reorder_curve(study)[:-1]:
            faster = improve_by(study, start.schedule, start.peak_bytes, 400)
            assert simulate(problem, faster).peak_bytes <= start.peak_bytes
            assert tuple(dict.fromkeys(faster)) == tuple(dict.fromkeys(start.schedule))
            found += faster != start.schedule
    assert found


def test_seconds_become_moves() -> None:
    problem = random_problem(2, 60, training=True)
    least = minimum_bytes(problem)
    start = pareto_curve(problem)[0].schedule
    assert improve(problem, start, least, 0.0) == start
    assert simulate(problem, improve(problem, start, least, 0.2)).peak_bytes <= least
