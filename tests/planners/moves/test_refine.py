"""Refining a curve: never worse at any budget, better between points, and judged by the simulator."""

from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.planners.curves.curve import Curve
from graphopt.planners.moves.refine import refined
from graphopt.planners.none import none_curve
from graphopt.planners.search import search_curve
from graphopt.planners.study.study import Study
from graphopt.problem.schedule import simulate
from tests.support.problems import assert_good, random_problem


def least_seconds(curve: Curve, budget_bytes: int) -> float:
    return min(p.seconds for p in curve if p.peak_bytes <= budget_bytes)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 40))
def test_refined_is_nowhere_worse_and_what_the_simulator_says(seed: int, ops: int) -> None:
    problem = random_problem(seed, ops)
    study = Study(problem)
    known = search_curve(study)
    better = refined(study, known)
    for point in known:
        assert least_seconds(better, point.peak_bytes) <= point.seconds
    for point in better:
        assert_good(study, point.schedule, point.peak_bytes)
        judged = simulate(problem, point.schedule)
        assert judged.peak_bytes == point.peak_bytes
        assert abs(judged.seconds - point.seconds) <= 1e-9 * judged.seconds


def test_refined_finds_what_lies_between_the_points_of_a_coarse_curve() -> None:
    gains = 0
    for seed in range(10):
        study = Study(random_problem(seed, 40, training=True))
        coarse = (search_curve(study)[0], *none_curve(study))
        middle = (coarse[0].peak_bytes + coarse[1].peak_bytes) // 2
        gains += least_seconds(refined(study, coarse), middle) < coarse[0].seconds
    assert gains >= 3


def test_refined_leaves_alone_what_needs_nothing() -> None:
    study = Study(random_problem(3))
    assert refined(study, none_curve(study)) == none_curve(study)
