"""What each planner is for, on graphs where the answer is known."""

from collections import Counter

import pytest
from hypothesis import example, given, settings

from graphopt.base.errors import InfeasibleError
from graphopt.planners import PLANNERS, minimum_bytes
from graphopt.planners.auto import in_order_curve
from graphopt.planners.chain import chain_curve
from graphopt.planners.moves.fill import fill
from graphopt.planners.moves.hoist import hoist
from graphopt.planners.sqrt_n import sqrt_n_curve
from graphopt.planners.study.study import Study
from graphopt.problem.problem import Op, Problem, Value, check_problem
from graphopt.problem.schedule import simulate
from tests.support.problems import assert_good, problems, random_problem


def chain(length: int, size: int = 10) -> Problem:
    """A forward of `length` ops in a row; each backward op reads the gradient and its forward's value."""
    forward = [Op(f"f{i}", 1.0, 0, (i - 1,) if i else (), (i,)) for i in range(length)]
    backward = [
        Op(f"b{i}", 1.0, 0, tuple(sorted({i, 2 * length - 2 - i})), (2 * length - 1 - i,), backward=True)
        for i in range(length - 1, -1, -1)
    ]
    values = (Value(size),) * (2 * length)
    return check_problem(Problem(values, (*forward, *backward), (2 * length - 1,)))


def test_none_runs_every_op_once() -> None:
    problem = chain(9)
    assert PLANNERS["none"](problem, 10**6) == tuple(range(18))
    with pytest.raises(InfeasibleError):
        PLANNERS["none"](problem, simulate(problem, range(18)).peak_bytes - 1)


def test_segments_take_sublinear_memory_for_one_forward_more() -> None:
    problem = chain(100)
    lowest = sqrt_n_curve(Study(problem))[0]
    assert lowest.peak_bytes <= 10 * (2 * 10 + 6)
    assert lowest.seconds <= problem.seconds + 100
    assert max(Counter(lowest.schedule).values()) == 2


def test_chain_nests_where_segments_cannot_go() -> None:
    problem = chain(100)
    study = Study(problem)
    assert chain_curve(study)[0].peak_bytes < sqrt_n_curve(study)[0].peak_bytes
    assert max(Counter(chain_curve(study)[0].schedule).values()) > 2


def test_search_goes_near_the_least_that_an_op_needs() -> None:
    problem = chain(30)
    least = minimum_bytes(problem)
    assert least <= 60
    assert_good(problem, PLANNERS["auto"](problem, least), least)


def test_fill_ends_without_recomputation_and_says_what_the_simulator_says() -> None:
    problem = chain(20)
    study = Study(problem)
    trajectory = fill(study, sqrt_n_curve(study)[0], "sqrt_n")
    assert trajectory[-1].schedule == tuple(range(40))
    for found in trajectory:
        result = simulate(problem, found.schedule)
        assert (result.peak_bytes, result.seconds) == (found.peak_bytes, pytest.approx(found.seconds))


def test_hoisting_moves_a_recomputation_to_where_less_is_alive() -> None:
    sizes = (1, 10, 1, 10, 10, 1)
    ops = (
        Op("x", 1.0, 0, (), (0,)),
        Op("big", 1.0, 20, (0,), (1,)),
        Op("y", 1.0, 0, (1,), (2,)),
        Op("g", 1.0, 0, (2,), (3,), backward=True),
        Op("h", 1.0, 0, (3,), (4,), backward=True),
        Op("end", 1.0, 0, (1, 3, 4), (5,), backward=True),
    )
    problem = check_problem(Problem(tuple(map(Value, sizes)), ops, (5,)))
    late = (0, 1, 2, 3, 4, 1, 5)
    earlier = hoist(Study(problem), late)
    assert_good(problem, earlier, simulate(problem, late).peak_bytes - 10)
    assert earlier.index(4) > len(earlier) - 1 - earlier[::-1].index(1)


@settings(max_examples=30, deadline=None)
@example(problem=random_problem(282027, 19))
@given(problem=problems)
def test_first_runs_stay_in_the_problems_own_order(problem: Problem) -> None:
    for found in in_order_curve(Study(problem)):
        assert tuple(dict.fromkeys(found.schedule)) == tuple(range(len(problem.ops)))
