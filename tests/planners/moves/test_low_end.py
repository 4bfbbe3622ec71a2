"""The low end of a curve becomes better, and nothing of it worse."""

import pytest
from hypothesis import given, settings

from graphopt.planners.auto import in_order_curve
from graphopt.planners.curves.curve import at_most
from graphopt.planners.moves.anneal import lowered_by
from graphopt.planners.moves.low_end import low_end_improved
from graphopt.planners.study.study import Study
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import check_schedule, simulate
from tests.planners.bounds.test_stage_model import chain_problem
from tests.support.problems import problems, random_problem


@settings(max_examples=40, deadline=None)
@given(problem=problems)
def test_no_point_is_worse_and_all_are_what_the_simulator_says(problem: Problem) -> None:
    study = Study(problem)
    known = in_order_curve(study)
    found = low_end_improved(study, known)
    for point in known:
        assert at_most(found, point.peak_bytes).seconds <= point.seconds * (1 + 1e-9)
    for point in found:
        result = simulate(problem, check_schedule(problem, point.schedule))
        assert (result.peak_bytes, result.seconds) == (point.peak_bytes, pytest.approx(point.seconds))


def test_it_finds_better_plans_on_some_problems() -> None:
    better = 0
    for seed in range(12):
        study = Study(chain_problem(seed, 40))
        known = in_order_curve(study)
        found = low_end_improved(study, known)
        better += [(p.peak_bytes, p.seconds) for p in found] != [(p.peak_bytes, p.seconds) for p in known]
    assert better >= 3


@settings(max_examples=40, deadline=None)
@given(problem=problems)
def test_a_schedule_from_above_fits_and_is_faster_than_what_is_known(problem: Problem) -> None:
    study = Study(problem)
    curve = in_order_curve(study)
    budget, known = curve[0].peak_bytes, curve[0].seconds
    for start in curve[1:]:
        found = lowered_by(study, start.schedule, budget, known, 100)
        if found is not None:
            result = simulate(problem, check_schedule(problem, found))
            assert result.peak_bytes <= budget
            assert result.seconds < known


def test_without_machine_code_nothing_changes() -> None:
    study = Study(random_problem(3, 30, training=True), compiled=False)
    known = in_order_curve(study)
    assert lowered_by(study, known[-1].schedule, known[0].peak_bytes, known[0].seconds, 100) is None
