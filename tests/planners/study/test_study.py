"""A study keeps what was found out about its problem; the problem itself stays as it was."""

import pickle

import pytest

from graphopt.base.errors import InfeasibleError
from graphopt.planners import PLANNERS, Study, minimum_bytes, pareto_curve
from graphopt.planners.native.plain import PlainLoops
from graphopt.planners.study.study import once_per_study, study_of
from tests.support.problems import random_problem


def test_a_result_is_made_once_for_each_study() -> None:
    made: list[Study] = []

    @once_per_study
    def count(study: Study) -> int:
        made.append(study)
        return len(study.problem.ops)

    first, second = Study(random_problem(1, 5)), Study(random_problem(1, 5))
    assert [count(first), count(first), count(second)] == [5, 5, 5]
    assert made == [first, second]


def test_the_curve_is_planned_once_for_all_budgets() -> None:
    study = Study(random_problem(7, 20, training=True))
    curve = pareto_curve(study)
    assert pareto_curve(study) is curve
    assert minimum_bytes(study) == curve[0].peak_bytes
    for point in curve:
        assert PLANNERS["auto"](study, point.peak_bytes) == point.schedule


@pytest.mark.parametrize("name", ["none", "sqrt_n", "chain", "search", "auto", "mincut", "reorder"])
def test_a_planner_finds_the_same_for_a_problem_and_for_its_study(name: str) -> None:
    problem = random_problem(7, 20, training=True)
    study = Study(problem)
    budget = (minimum_bytes(study) + pareto_curve(study)[-1].peak_bytes) // 2
    try:
        found = PLANNERS[name](study, budget)
    except InfeasibleError:
        with pytest.raises(InfeasibleError):
            PLANNERS[name](problem, budget)
    else:
        assert PLANNERS[name](problem, budget) == found


def test_planning_leaves_a_problem_as_it_was() -> None:
    problem = random_problem(9, 20, training=True)
    curve = pareto_curve(problem)
    assert set(vars(problem)) <= {"values", "ops", "outputs", "producer", "readers", "first_backward", "seconds"}
    again = pickle.loads(pickle.dumps(problem))
    assert again == problem
    assert [p.schedule for p in pareto_curve(again)] == [p.schedule for p in curve]


def test_a_study_of_another_problem_has_loops_of_the_same_kind() -> None:
    other = Study(random_problem(1), compiled=False).of(random_problem(2))
    assert isinstance(other.loops, PlainLoops)
    assert study_of(other) is other
