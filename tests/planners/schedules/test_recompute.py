"""Schedules from a choice of what to keep: the definition, step by step, and its one pass from the end."""

import random

from hypothesis import given
from hypothesis import strategies as st

from graphopt.planners.schedules.recompute import missing_ops, recompute_once
from graphopt.planners.study.study import Study
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import check_schedule
from tests.support.problems import problems


def step_by_step(study: Study, end: int, kept: set[int]) -> list[int]:
    """The forward; then before each op what is missing of its inputs, which stays from then on."""
    alive, schedule = set(study.held | kept), list(range(end))
    for op_id in range(end, len(study.problem.ops)):
        for step in (*missing_ops(study, study.problem.ops[op_id].inputs, alive), op_id):
            schedule.append(step)
            alive.update(study.problem.ops[step].outputs)
    return schedule


@given(problem=problems, seed=st.integers(0, 10**6))
def test_what_was_not_kept_runs_once_more_when_it_is_first_read(problem: Problem, seed: int) -> None:
    rng, study = random.Random(seed), Study(problem)
    end = rng.randint(0, len(problem.ops))
    kept = {v for v, maker in enumerate(problem.producer) if maker < 0 or rng.random() < 0.5}
    found = recompute_once(study, end, kept).tolist()
    assert found == step_by_step(study, end, kept)
    check_schedule(problem, found)
