"""What holds for every planner on every graph."""

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.base.errors import InfeasibleError
from graphopt.planners import PLANNERS, Study, minimum_bytes, pareto_curve
from graphopt.problem.problem import Op, Problem, Value, check_problem
from graphopt.problem.schedule import Schedule, simulate
from tests.support.problems import assert_good, problems, random_problem

#: What `auto` is the best of; others may take longer and find more.
MEMBERS = [name for name in PLANNERS if name != "exact"]
few = settings(max_examples=60, deadline=None)


def own_bytes(problem: Problem, op: Op) -> int:
    made = {v for v in (*op.inputs, *op.outputs) if problem.producer[v] >= 0}
    return op.workspace_bytes + sum(problem.values[v].bytes for v in made)


def plan(name: str, problem: Study, budget: int) -> Schedule | None:
    try:
        return PLANNERS[name](problem, budget)
    except InfeasibleError as error:
        assert error.budget_bytes == budget < error.minimum_bytes
        return None


@few
@given(problem=problems, share=st.floats(0.2, 1.2))
def test_schedules_are_valid_and_inside_the_budget(problem: Problem, share: float) -> None:
    budget = int(share * simulate(problem, range(len(problem.ops))).peak_bytes)
    study = Study(problem)
    for name in PLANNERS:
        schedule = plan(name, study, budget)
        if schedule is not None:
            assert_good(study, schedule, budget)


@few
@given(problem=problems, share=st.floats(0.2, 1.2))
def test_auto_is_never_beaten_by_a_member(problem: Problem, share: float) -> None:
    budget = int(share * simulate(problem, range(len(problem.ops))).peak_bytes)
    study = Study(problem)
    best = plan("auto", study, budget)
    for name in MEMBERS:
        schedule = plan(name, study, budget)
        if schedule is not None:
            assert best is not None
            assert simulate(problem, best).seconds <= simulate(problem, schedule).seconds


@few
@given(problem=problems)
def test_more_bytes_never_cost_more_time(problem: Problem) -> None:
    peak = simulate(problem, range(len(problem.ops))).peak_bytes
    study = Study(problem)
    least = minimum_bytes(study)
    seconds = [
        simulate(problem, PLANNERS["auto"](study, budget)).seconds
        for budget in sorted({least, peak, *range(least, peak, max(1, peak // 17))})
    ]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] == problem.seconds


@few
@given(problem=problems)
def test_curve_is_what_the_simulator_says(problem: Problem) -> None:
    study = Study(problem)
    curve = pareto_curve(study)
    for before, after in pairwise(curve):
        assert before.peak_bytes < after.peak_bytes
        assert before.seconds > after.seconds
    for found in curve:
        result = simulate(problem, found.schedule)
        assert result.peak_bytes == found.peak_bytes
        assert result.seconds == pytest.approx(found.seconds, rel=1e-12)
        assert_good(study, found.schedule, found.peak_bytes)


@few
@given(problem=problems)
def test_there_is_a_plan_at_the_minimum_and_none_below(problem: Problem) -> None:
    study = Study(problem)
    least = minimum_bytes(study)
    assert_good(study, PLANNERS["auto"](study, least), least)
    assert least >= max(own_bytes(problem, op) for op in problem.ops)
    if least:
        with pytest.raises(InfeasibleError) as caught:
            PLANNERS["auto"](study, least - 1)
        assert (caught.value.budget_bytes, caught.value.minimum_bytes) == (least - 1, least)


def test_same_problem_same_plan() -> None:
    for seed in range(5):
        first, second = random_problem(seed, 20), random_problem(seed, 20)
        assert [p.schedule for p in pareto_curve(first)] == [p.schedule for p in pareto_curve(second)]


def test_one_op() -> None:
    problem = Problem((Value(3),), (Op("only", 1.0, 4, (), (0,)),), (0,))
    for planner in PLANNERS.values():
        assert planner(problem, 7) == (0,)
        with pytest.raises(InfeasibleError, match=r"6 bytes.*7 bytes"):
            planner(problem, 6)


def test_what_must_run_once_runs_once() -> None:
    forward = [Op(f"f{i}", 1.0, 0, (i - 1,) if i else (), (i,), recomputable=i % 3 > 0) for i in range(12)]
    backward = [Op(f"b{i}", 1.0, 0, tuple({i, 22 - i}), (23 - i,), backward=True) for i in range(11, -1, -1)]
    problem = check_problem(Problem((Value(10),) * 24, (*forward, *backward), (23,)))
    schedule = PLANNERS["auto"](problem, minimum_bytes(problem))
    assert len(schedule) > len(problem.ops)
    assert all(schedule.count(i) == 1 for i in range(0, 12, 3))


def test_planners_import_no_torch_and_no_networkx() -> None:
    code = "import sys, graphopt.planners; print([m for m in ('torch', 'networkx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
