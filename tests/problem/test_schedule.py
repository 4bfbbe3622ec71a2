"""The simulator against one that follows its definition word by word."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.base.errors import ScheduleError
from graphopt.problem.problem import Op, Problem, Value
from graphopt.problem.schedule import check_schedule, lifetimes, simulate
from tests.support.problems import random_problem, random_schedule


def is_live(problem: Problem, schedule: tuple[int, ...], value: int, step: int) -> bool:
    """Produced by now, and read later than now (or an output) before it is produced again."""
    ops = problem.ops
    makes = [value in ops[op_id].outputs for op_id in schedule]
    if makes[step]:
        return True
    if not any(makes[:step]):
        return False
    for later in range(step, len(schedule)):
        if value in ops[schedule[later]].inputs:
            return True
        if makes[later]:
            return False
    return value in problem.outputs


def naive_live_bytes(problem: Problem, schedule: tuple[int, ...]) -> list[int]:
    return [
        sum(v.bytes for i, v in enumerate(problem.values) if is_live(problem, schedule, i, step))
        + problem.ops[op_id].workspace_bytes
        for step, op_id in enumerate(schedule)
    ]


@given(seed=st.integers(0, 10**6), ops=st.integers(1, 14))
def test_simulator_does_what_its_definition_says(seed: int, ops: int) -> None:
    problem = random_problem(seed, ops)
    schedule = check_schedule(problem, random_schedule(problem, seed))
    result = simulate(problem, schedule)
    expected = naive_live_bytes(problem, schedule)
    assert result.live_bytes.tolist() == expected
    assert result.peak_bytes == max(expected)
    assert result.peak_step == expected.index(max(expected))
    assert result.seconds == math.fsum(problem.ops[i].seconds for i in schedule)


def chain() -> Problem:
    return Problem(
        (Value(10), Value(20), Value(5)),
        (
            Op("a", 1.0, 0, (), (0,)),
            Op("b", 2.0, 100, (0,), (1,)),
            Op("c", 3.0, 0, (0, 1), (2,), backward=True, recomputable=False),
        ),
        (2,),
    )


def test_workspace_counts_only_while_its_op_runs() -> None:
    assert simulate(chain(), (0, 1, 2)).live_bytes.tolist() == [10, 130, 35]


def test_value_is_dead_between_its_last_read_and_its_next_production() -> None:
    assert lifetimes(chain(), (0, 1, 0, 2)) == [(0, 0, 1), (0, 2, 3), (1, 1, 3), (2, 3, 3)]


def test_output_lives_from_its_last_production_to_the_end() -> None:
    problem = Problem((Value(7), Value(1)), (Op("a", 0, 0, (), (0,)), Op("b", 0, 0, (), (1,))), (0,))
    assert simulate(problem, (0, 1)).live_bytes.tolist() == [7, 8]
    assert simulate(problem, (0, 1, 0)).live_bytes.tolist() == [7, 1, 7]


def test_empty_schedule_costs_nothing() -> None:
    assert simulate(Problem((), (), ()), ()).peak_bytes == 0


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ((0, 1, 7), r"step 2: there is no op 7; 3 ops are given"),
        ((0, 1, True), r"step 2: there is no op True"),
        ((0, 1, -1), r"step 2: there is no op -1"),
        ((1, 0, 2), r"step 0: op 1 \('b'\) reads value 0 before it is produced"),
        ((0, 1, 2, 2), r"step 3: op 2 \('c'\) must not be recomputed"),
        ((0, 1), r"op 2 \('c'\) is never run"),
    ],
)
def test_invalid_schedule_is_refused_with_its_step(schedule: tuple[int, ...], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        check_schedule(chain(), schedule)


def is_valid(problem: Problem, schedule: list[int]) -> bool:
    """Word by word: ops that are there, once where they must not run again, whose inputs were produced before."""
    for step, op_id in enumerate(schedule):
        if not 0 <= op_id < len(problem.ops) or (op_id in schedule[:step] and not problem.ops[op_id].recomputable):
            return False
        if any(maker not in schedule[:step] for v in problem.ops[op_id].inputs if (maker := problem.producer[v]) >= 0):
            return False
    return set(range(len(problem.ops))) <= set(schedule)


@given(seed=st.integers(0, 10**6), ops=st.integers(1, 14), changes=st.lists(st.integers(0, 2**20), max_size=3))
def test_what_is_checked_is_what_is_valid(seed: int, ops: int, changes: list[int]) -> None:
    problem = random_problem(seed, ops)
    schedule = list(random_schedule(problem, seed))
    for change in changes:
        place, other = change % len(schedule), (change // 31) % len(schedule)
        kind = change % 4
        if kind == 0:
            schedule[place], schedule[other] = schedule[other], schedule[place]
        elif kind == 1:
            schedule.insert(place, (change // 7) % (ops + 2) - 1)
        elif kind == 2 and len(schedule) > 1:
            del schedule[place]
        else:
            schedule[place] = schedule[other]
    try:
        found = check_schedule(problem, schedule) == tuple(schedule)
    except ScheduleError:
        found = False
    assert found == is_valid(problem, schedule)
