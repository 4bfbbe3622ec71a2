"""A retouched curve is nowhere worse, and better on a staircase that the searches leave."""

import pytest
from hypothesis import given, settings

from graphopt.planners import pareto_curve
from graphopt.planners.curves.curve import Curve, pareto
from graphopt.planners.curves.effort import effort_for
from graphopt.planners.moves.retouch import retouched
from graphopt.planners.none import none_curve
from graphopt.planners.sqrt_n import sqrt_n_curve
from graphopt.planners.study.study import Study
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import check_schedule, simulate
from tests.support.problems import problems, random_problem


def seconds_at(curve: Curve, budget: int) -> float:
    return min(point.seconds for point in curve if point.peak_bytes <= budget)


@settings(max_examples=30, deadline=None)
@given(problem=problems)
def test_it_is_nowhere_worse_and_what_the_simulator_says(problem: Problem) -> None:
    study = Study(problem)
    known = pareto([*sqrt_n_curve(study), *none_curve(study)])
    curve = retouched(study, known)
    for point in known:
        assert seconds_at(curve, point.peak_bytes) <= point.seconds
    for point in curve:
        check_schedule(problem, point.schedule)
        result = simulate(problem, point.schedule)
        assert (result.peak_bytes, result.seconds) == (point.peak_bytes, pytest.approx(point.seconds))


def test_it_finds_what_lies_between_two_points() -> None:
    """A staircase of one step, of which the lower end takes twice the time."""
    problem = random_problem(11, 40, training=True)
    study = Study(problem)
    whole = pareto_curve(study)
    ends = pareto([whole[0], whole[-1]])
    curve = retouched(study, ends)
    assert len(curve) > len(ends)
    assert curve[0].seconds <= whole[0].seconds
    again = retouched(Study(problem), ends)
    assert [point.schedule for point in again] == [point.schedule for point in curve]


def test_large_problems_are_left_as_they_are() -> None:
    problem = random_problem(3, 1501)
    assert not effort_for(Study(problem)).retouches
    study = Study(problem)
    curve = none_curve(study)
    assert retouched(study, curve) is curve
