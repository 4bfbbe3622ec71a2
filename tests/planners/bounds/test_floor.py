"""The floor in any order is below every schedule there is, and reached where nothing can be computed again."""

import pytest
from hypothesis import example, given, settings

from graphopt.planners import Study, pareto_curve
from graphopt.planners.bounds.floor import floor_in_any_order
from graphopt.planners.schedules.floor import practical_floor
from graphopt.problem.problem import Op, Problem, Value, check_problem
from graphopt.problem.schedule import simulate
from tests.planners.bounds.test_lower_bound import schedules_in_any_order
from tests.support.problems import problems, random_problem


@pytest.mark.parametrize("seed", range(40))
def test_no_schedule_in_any_order_is_below(seed: int) -> None:
    problem = random_problem(seed, 4 + seed % 2)
    study = Study(problem)
    holders = {problem.producer[v] for v in study.held}
    peaks = [
        simulate(problem, schedule).peak_bytes
        for schedule in schedules_in_any_order(problem)
        if all(schedule.count(op_id) == 1 for op_id in holders)
    ]
    assert peaks
    assert floor_in_any_order(study) <= min(peaks)


@settings(max_examples=60, deadline=None)
@example(problem=random_problem(480, 13))
@given(problem=problems)
def test_no_plan_is_below(problem: Problem) -> None:
    study = Study(problem)
    holders = {problem.producer[v] for v in study.held}
    # the evictor may make an output again, in a few random problems: below the floor, which lets none be freed
    schedules = [point.schedule for point in pareto_curve(study)]
    peaks = [simulate(problem, s).peak_bytes for s in schedules if all(s.count(op_id) == 1 for op_id in holders)]
    assert floor_in_any_order(study) <= min(peaks, default=floor_in_any_order(study))


def test_it_is_below_the_floor_of_the_own_order_where_another_order_needs_less() -> None:
    """Held values that may be made after the widest op do not count with it."""
    ops = (
        Op("held", 1.0, 0, (), (0,), recomputable=False),
        Op("wide", 1.0, 90, (), (1,)),
        Op("end", 1.0, 0, (0, 1), (2,)),
    )
    study = Study(check_problem(Problem((Value(20), Value(1), Value(1)), ops, (2,))))
    assert practical_floor(study) == 111
    assert floor_in_any_order(study) == 91


def test_what_is_held_between_ops_that_depend_on_each_other_counts() -> None:
    ops = (
        Op("held", 1.0, 0, (), (0,), recomputable=False),
        Op("start", 1.0, 0, (0,), (1,)),
        Op("wide", 1.0, 90, (1,), (2,)),
        Op("end", 1.0, 0, (0, 2), (3,)),
    )
    study = Study(check_problem(Problem((Value(20), Value(1), Value(1), Value(1)), ops, (3,))))
    assert floor_in_any_order(study) == 90 + 1 + 1 + 20
