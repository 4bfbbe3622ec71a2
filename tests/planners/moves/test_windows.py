"""Parts of a schedule decided anew: always inside the budget, better or as it was."""

import random
import sys

import pytest

from graphopt.planners import pareto_curve
from graphopt.planners.moves.windows import improve_windows
from graphopt.planners.retention.solve import Effort, Question, solve
from graphopt.planners.retention.window import may_run_again, window
from graphopt.planners.sqrt_n import sqrt_n_curve
from graphopt.problem.schedule import check_schedule, simulate
from tests.planners.test_members import chain
from tests.support.problems import random_problem, random_schedule

pytest.importorskip("ortools")


@pytest.mark.parametrize("seed", range(12))
def test_what_the_solver_finds_fits_whatever_stays_as_it_is(seed: int) -> None:
    problem = random_problem(seed, 16)
    schedule = random_schedule(problem, seed)
    before = simulate(problem, schedule)
    free = may_run_again(problem)
    some = random.Random(seed).sample(free, len(free) // 2)
    question = Question(window(problem, schedule, some, before.peak_bytes), dict.fromkeys(some, 2))
    found = solve(question, schedule, Effort(10.0)).schedule
    if found is not None:
        after = simulate(problem, check_schedule(problem, found))
        assert after.peak_bytes <= before.peak_bytes
        assert after.seconds < before.seconds
        assert [op for op in found if op not in some] == [op for op in schedule if op not in some]


def test_a_coarse_schedule_gets_faster_and_the_same_every_time() -> None:
    problem = chain(40)
    start = sqrt_n_curve(problem)[0]
    found = improve_windows(problem, start.schedule, start.peak_bytes, 3.0)
    result = simulate(problem, check_schedule(problem, found))
    assert result.peak_bytes <= start.peak_bytes
    assert result.seconds < start.seconds
    assert list(dict.fromkeys(found)) == list(range(80))
    assert found == improve_windows(problem, start.schedule, start.peak_bytes, 3.0)


@pytest.mark.parametrize("seed", range(4))
def test_never_slower(seed: int) -> None:
    problem = random_problem(seed, 24, training=True)
    for point in pareto_curve(problem)[:3]:
        found = improve_windows(problem, point.schedule, point.peak_bytes, 1.0, seed)
        result = simulate(problem, check_schedule(problem, found))
        assert result.peak_bytes <= point.peak_bytes
        assert result.seconds <= point.seconds


def test_without_the_extra_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = chain(40)
    start = sqrt_n_curve(problem)[0]
    monkeypatch.setitem(sys.modules, "ortools", None)
    assert improve_windows(problem, start.schedule, start.peak_bytes, 3.0) is start.schedule
