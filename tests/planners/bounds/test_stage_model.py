"""What several moments prove together is below the optimum, and above what one step proves."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from graphopt.planners.bounds.lower_bound import Order, dearest_step, lower_bound_seconds
from graphopt.planners.bounds.moments import moments_in_any_order, moments_in_order
from graphopt.planners.bounds.relaxation import proven
from graphopt.planners.bounds.stage_model import StageModel
from graphopt.planners.bounds.step_model import StepModel
from graphopt.planners.bounds.wanted import wanted_in_order
from graphopt.planners.native.linear_programme import LinearProgramme
from graphopt.planners.study.study import Study
from graphopt.problem.problem import Op, Problem, Value, check_problem
from graphopt.problem.schedule import simulate
from tests.support.optimum import optimum_seconds
from tests.support.problems import random_problem


def chain_problem(seed: int, length: int) -> Problem:
    """A training chain with some skips: what is read late is made early, so that little memory costs much."""
    rng = random.Random(seed)
    values = [Value(rng.choice([3, 5, 10, 20])) for _ in range(length)]
    ops: list[Op] = []
    for i in range(length):
        skip = {rng.randrange(i - 1)} if i > 1 and rng.random() < 0.3 else set()
        inputs = tuple(sorted(skip | ({i - 1} if i else set())))
        ops.append(Op(f"f{i}", rng.choice([1.0, 2.0, 5.0]), rng.choice([0, 0, 4]), inputs, (i,)))
    for i in reversed(range(length)):
        gradient = {len(values) - 1} if i < length - 1 else set()
        inputs = tuple(sorted({i} | gradient | ({i - 1} if i and rng.random() < 0.5 else set())))
        ops.append(Op(f"b{i}", 1.0, 0, inputs, (len(values),), backward=True))
        values.append(Value(rng.choice([1, 3, 5])))
    return check_problem(Problem(tuple(values), tuple(ops), (len(values) - 1,)))


def bound(study: Study, budget_bytes: int, order: Order, count: int, dearest: int) -> float:
    """What `count` moments prove, one of them op `dearest`, by many steps towards the best prices."""
    choose = moments_in_order if order == "fixed" else moments_in_any_order
    model = StageModel(study.problem, budget_bytes, choose(study, budget_bytes, count, dearest))
    programme = model.programme()
    prices = study.loops.prices(programme, 3000)
    assert prices is not None
    return model.sure_seconds + proven(programme, prices)


def budgets_of(problem: Problem) -> list[int]:
    peak = simulate(problem, range(len(problem.ops))).peak_bytes
    return [int(peak * share) for share in (0.95, 0.8, 0.65, 0.5)]


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize(("order", "length", "ops"), [("fixed", 4, 8), ("free", 3, 6)])
def test_never_above_the_optimum(order: Order, length: int, ops: int, seed: int) -> None:
    problem = chain_problem(seed, length) if seed % 2 else random_problem(seed, ops)
    study, rng = Study(problem), random.Random(seed)
    for budget in budgets_of(problem):
        best = optimum_seconds(problem, budget, in_order=order == "fixed")
        for _ in range(3):
            dearest = rng.randrange(len(problem.ops))
            found = bound(study, budget, order, rng.randint(1, 8), dearest)
            assert found <= best + 1e-9 * problem.seconds
        assert lower_bound_seconds(study, budget, order) <= best


def test_what_runs_again_more_than_once_is_paid_for_as_often() -> None:
    """Two wide ops one after the other: the value that both need gone is made again behind each."""
    ops = (
        Op("a", 8.0, 0, (), (0,)),
        Op("wide", 1.0, 90, (), (1,)),
        Op("use", 1.0, 0, (0, 1), (2,)),
        Op("wide too", 1.0, 90, (2,), (3,)),
        Op("end", 1.0, 0, (0, 3), (4,)),
    )
    problem = check_problem(Problem((Value(20), Value(1), Value(1), Value(1), Value(1)), ops, (4,)))
    assert optimum_seconds(problem, 92, in_order=True) == 12.0 + 16.0
    study = Study(problem)
    alone = [StepModel(study, step, wanted_in_order(problem)(step), 92).best(0.1, 1e-6).seconds for step in range(5)]
    assert max(alone) == pytest.approx(8.0)
    # At the first of the two a twentieth of the value may stay.
    assert bound(study, 92, "fixed", 5, 3) == pytest.approx(12.0 + 8.0 + 8.0 * 19 / 20, rel=1e-3)


def test_the_long_window_needs_inputs_as_a_whole() -> None:
    """With all moments it is no less than what the best step alone proves, but for the search for prices."""
    problem = chain_problem(3, 12)
    study = Study(problem)
    for budget in budgets_of(problem)[:2]:
        step = dearest_step(study, budget, "fixed")
        alone = StepModel(study, step, wanted_in_order(problem)(step), budget).best(0.1, 1e-6).seconds
        assert bound(study, budget, "fixed", len(problem.ops), step) >= problem.seconds + 0.98 * alone


@pytest.mark.parametrize("seed", range(20))
def test_any_prices_prove_a_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = 6, 9
    matrix = rng.integers(-2, 3, (rows, columns)).astype(np.float64)
    least = rng.integers(0, 2, columns).astype(np.float64)
    row, column = np.nonzero(matrix)
    points = np.maximum(rng.random((50, columns)), least)
    limits = matrix @ points[0]
    programme = LinearProgramme(rng.random(columns), least, row, column, matrix[row, column], limits)
    fitting = [point for point in points if (matrix @ point <= limits + 1e-12).all()]
    assert fitting
    for _ in range(20):
        found = proven(programme, rng.random(rows) * 10 ** rng.uniform(-2, 2))
        assert all(found <= programme.costs @ point + 1e-9 for point in fitting)


def test_prices_come_to_prove_the_optimum() -> None:
    """Half of two things that cost 1 and 3, and either of them twice as heavy as there is room: keep the dear one."""
    programme = LinearProgramme(
        np.array([1.0, 3.0]),
        np.zeros(2),
        np.array([0, 0]),
        np.array([0, 1]),
        np.array([-1.0, -1.0]),
        np.array([-1.5]),
    )
    study = Study(random_problem(0, 3))
    prices = study.loops.prices(programme, 2000)
    assert prices is not None
    assert proven(programme, prices) == pytest.approx(1.0 + 0.5 * 3.0, rel=1e-4)
    # Costs in another unit are proven in it.
    assert proven(replace(programme, costs=2 * programme.costs), 2 * prices) == pytest.approx(5.0, rel=1e-4)


def test_without_machine_code_the_steps_alone_give_the_bound() -> None:
    problem = chain_problem(1, 5)
    budget = budgets_of(problem)[1]
    plain = lower_bound_seconds(Study(problem, compiled=False), budget)
    assert problem.seconds <= plain <= lower_bound_seconds(Study(problem), budget) < math.inf
