"""The bound is below every schedule there is, and not far below the best."""

import math
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.planners import pareto_curve
from graphopt.planners.auto import in_order_curve
from graphopt.planners.bounds.lower_bound import Order, lower_bound_seconds
from graphopt.planners.study.study import Study
from graphopt.problem.problem import Op, Problem, Value, check_problem
from graphopt.problem.schedule import Schedule, simulate
from tests.support.problems import problems, random_problem, random_schedule

MOST_AGAIN = 2


def schedules_in_any_order(problem: Problem) -> Iterator[Schedule]:
    """Every valid schedule with at most `MOST_AGAIN` recomputations."""
    count = len(problem.ops)

    def extend(steps: Schedule, made: frozenset[int]) -> Iterator[Schedule]:
        if len(set(steps)) == count:
            yield steps
        if len(steps) == len(set(steps)) + MOST_AGAIN and len(set(steps)) == count:
            return
        for op_id, op in enumerate(problem.ops):
            again = op_id in steps
            if again and (not op.recomputable or len(steps) - len(set(steps)) == MOST_AGAIN):
                continue
            if all(problem.producer[v] < 0 or v in made for v in op.inputs):
                yield from extend((*steps, op_id), made | set(op.outputs))

    yield from extend((), frozenset())


def reordered(problem: Problem, seed: int) -> tuple[Problem, list[int]]:
    """The problem with its ops in another valid order, and for each place there the op here."""
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < len(problem.ops):
        ready = [
            i
            for i, op in enumerate(problem.ops)
            if i not in order and all(problem.producer[v] in (-1, *order) for v in op.inputs)
        ]
        order.append(rng.choice(ready))
    return check_problem(Problem(problem.values, tuple(problem.ops[i] for i in order), problem.outputs)), order


@pytest.mark.parametrize("seed", range(20))
def test_never_above_the_best_of_all_schedules(seed: int) -> None:
    problem = random_problem(seed, 4)
    best: dict[tuple[Order, int], float] = {}
    for schedule in schedules_in_any_order(problem):
        result = simulate(problem, schedule)
        in_order = list(dict.fromkeys(schedule)) == list(range(4))
        orders: tuple[Order, ...] = ("fixed", "free") if in_order else ("free",)
        for order in orders:
            key = order, result.peak_bytes
            best[key] = min(best.get(key, math.inf), result.seconds)
    for (order, peak), seconds in best.items():
        assert lower_bound_seconds(problem, peak, order) <= seconds


@settings(max_examples=60, deadline=None)
@given(problem=problems, seed=st.integers(0, 10**6))
def test_never_above_what_planners_find(problem: Problem, seed: int) -> None:
    result = simulate(problem, random_schedule(problem, seed))
    assert lower_bound_seconds(problem, result.peak_bytes, "fixed") <= result.seconds
    study = Study(problem)
    for found in in_order_curve(study):
        assert problem.seconds <= lower_bound_seconds(study, found.peak_bytes, "fixed") <= found.seconds
    other, order = reordered(problem, seed)
    for found in pareto_curve(other):
        peak = simulate(problem, [order[i] for i in found.schedule]).peak_bytes
        assert lower_bound_seconds(problem, peak) <= found.seconds


def test_it_is_often_reached() -> None:
    reached = total = 0
    for seed in range(60):
        problem = random_problem(seed, 12, training=True)
        study = Study(problem)
        for found in in_order_curve(study):
            total += 1
            reached += found.seconds <= lower_bound_seconds(study, found.peak_bytes, "fixed") * (1 + 1e-6)
    assert reached >= 0.5 * total


def test_what_is_needed_to_compute_again_is_paid_for() -> None:
    """Three ops in a row, only the last one's value read later: to have it again all must run again."""
    ops = (
        Op("a", 1.0, 0, (), (0,)),
        Op("b", 2.0, 0, (0,), (1,)),
        Op("c", 4.0, 0, (1,), (2,)),
        Op("wide", 8.0, 90, (), (3,)),
        Op("end", 16.0, 0, (2, 3), (4,)),
    )
    problem = check_problem(Problem((Value(20), Value(20), Value(20), Value(1), Value(1)), ops, (4,)))
    assert lower_bound_seconds(problem, 111, "fixed") == 31.0
    assert lower_bound_seconds(problem, 110, "fixed") == pytest.approx(31.0 + 7.0 * 1 / 20)
    assert lower_bound_seconds(problem, 91, "fixed") == pytest.approx(31.0 + 7.0)
    assert lower_bound_seconds(problem, 91) == 31.0  # `wide` may run first


def test_infinite_only_where_nothing_fits() -> None:
    ops = (
        Op("once", 1.0, 0, (), (0,), recomputable=False),
        Op("wide", 1.0, 90, (), (1,)),
        Op("end", 1.0, 0, (0, 1), (2,)),
    )
    problem = check_problem(Problem((Value(20), Value(1), Value(1)), ops, (2,)))
    assert lower_bound_seconds(problem, 111, "fixed") == 3.0
    assert lower_bound_seconds(problem, 110, "fixed") == math.inf
    assert lower_bound_seconds(problem, 91) == 3.0
    assert lower_bound_seconds(problem, 90) == math.inf


def test_the_turn_is_found_in_a_long_graph() -> None:
    """The step that costs most is looked for, not all are looked at: a training chain has it in the middle."""
    length = 300
    forward = [Op(f"f{i}", 1.0, 0, (i - 1,) if i else (), (i,)) for i in range(length)]
    backward = [
        Op(f"b{i}", 1.0, 0, tuple(sorted({i, 2 * length - 2 - i})), (2 * length - 1 - i,), backward=True)
        for i in range(length - 1, -1, -1)
    ]
    problem = check_problem(Problem((Value(10),) * (2 * length), (*forward, *backward), (2 * length - 1,)))
    # Besides the turn's own three values, two dozen of 300 can stay.
    least = 2 * length + length - 3 - 24
    assert lower_bound_seconds(problem, 30 + 240, "fixed") >= least
    assert lower_bound_seconds(problem, 30 + 240) >= least
