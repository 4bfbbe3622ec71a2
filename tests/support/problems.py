"""Problems to plan: random ones, and what tests of several planners ask of a schedule."""

import random
from collections.abc import Sequence

from hypothesis import strategies as st

from graphopt.planners.orders.lower_order import reordered, slightly_lower
from graphopt.planners.study.study import Study, study_of
from graphopt.problem.problem import Op, Problem, Value, check_problem
from graphopt.problem.schedule import Schedule, check_schedule, simulate


def random_problem(seed: int, ops: int = 12, *, training: bool | None = None) -> Problem:
    """Any small graph; a training one has a backward that reads the forward in reverse."""
    rng = random.Random(seed)
    training = rng.random() < 0.5 if training is None else training
    values = [Value(rng.choice([0, 1, 3, 8, 20])) for _ in range(rng.randint(0, 2))]
    made: list[Op] = []
    produced: list[int] = list(range(len(values)))
    turn = ops // 2 if training else ops
    for position in range(ops):
        near = produced[-6:] if position < turn else produced[::-1][position - turn :][:3] + produced[-2:]
        inputs = rng.sample(near, min(len(near), rng.choice([0, 1, 1, 2, 3])))
        outputs = [len(values) + k for k in range(rng.choice([1, 1, 1, 2]))]
        values += [Value(rng.choice([0, 1, 2, 5, 10, 40])) for _ in outputs]
        produced += outputs
        made.append(
            Op(
                name=f"op{position}",
                seconds=rng.choice([0.0, 1.0, 2.0, 5.0]),
                workspace_bytes=rng.choice([0, 0, 0, 7]),
                inputs=tuple(dict.fromkeys(inputs)),
                outputs=tuple(outputs),
                backward=position >= turn,
                recomputable=rng.random() < 0.9,
                pinned=(seed + position) % 7 == 0,
            )
        )
    outputs_of_all = rng.sample(range(len(values)), min(len(values), rng.randint(0, 3)))
    return check_problem(Problem(tuple(values), tuple(made), tuple(outputs_of_all)))


def random_schedule(problem: Problem, seed: int) -> Schedule:
    """The problem's order with recomputations of anything put anywhere."""
    rng = random.Random(seed)
    steps: list[int] = []
    for op_id in range(len(problem.ops)):
        while rng.random() < 0.4:
            again = rng.randrange(op_id + 1)
            if again < op_id and problem.ops[again].recomputable:
                steps.append(again)
        steps.append(op_id)
    return tuple(steps)


problems = st.builds(random_problem, st.integers(0, 10**6), st.integers(1, 24))


def assert_good(planned: Problem | Study, schedule: Sequence[int], budget: int) -> None:
    """Valid, inside the budget, and first runs in one of the three orders."""
    study = study_of(planned)
    problem = study.problem
    check_schedule(problem, schedule)
    orders = (tuple(range(len(problem.ops))), reordered(study), slightly_lower(study))
    assert tuple(dict.fromkeys(schedule)) in orders
    assert simulate(problem, schedule).peak_bytes <= budget
