"""The exact planner beside all schedules of its kind, and beside optima that others have proven."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from graphopt.base.errors import InfeasibleError, UsageError
from graphopt.planners import PLANNERS
from graphopt.planners.auto import in_order_curve
from graphopt.planners.exact import solve_exact
from graphopt.planners.study.study import Study
from graphopt.problem.problem import Op, Problem, Value, check_problem, load_problem
from graphopt.problem.schedule import simulate
from tests.planners.test_against_optimum import all_schedules
from tests.support.problems import assert_good, random_problem

pytest.importorskip("ortools")
INSTANCES = Path(__file__).parents[2].parent / "shared" / "instances"

#: Optima with two computations an op and a fixed order, as found with Moccasin's own model: extra time in percent.
PROVEN = [
    ("checkmate_VGG19_train", 0.9, 0.104),
    ("checkmate_VGG19_train", 0.8, 4.851),
    ("checkmate_vgg_unet_train", 0.9, 1.129),
    ("checkmate_vgg_unet_train", 0.8, 1.984),
    ("checkmate_fcn_8_vgg_train", 0.9, 0.029),
    ("checkmate_fcn_8_vgg_train", 0.8, 0.136),
]


def peak_of(problem: Problem) -> int:
    return simulate(problem, range(len(problem.ops))).peak_bytes


@pytest.mark.parametrize("seed", range(12))
def test_no_schedule_of_its_kind_is_faster(seed: int) -> None:
    problem = random_problem(seed, 5)
    kind = [simulate(problem, s) for s in all_schedules(problem) if max(Counter(s).values()) <= 2]
    for budget in sorted({result.peak_bytes for result in kind})[:6]:
        best = min(result.seconds for result in kind if result.peak_bytes <= budget)
        try:
            found = solve_exact(problem, budget)
        except InfeasibleError:
            pytest.fail(f"there is a schedule in {budget} bytes")
        assert_good(problem, found.schedule, budget)
        assert found.proven
        assert found.bound_seconds == pytest.approx(found.seconds, rel=1e-6)
        assert found.seconds <= best * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_it_is_never_slower_than_auto_and_the_same_every_time(seed: int) -> None:
    problem = random_problem(seed, 20, training=True)
    for point in in_order_curve(Study(problem))[:4]:
        found = solve_exact(problem, point.peak_bytes, limit_seconds=5)
        assert found.bound_seconds <= found.seconds <= point.seconds
        assert_good(problem, found.schedule, point.peak_bytes)
        assert found == solve_exact(problem, point.peak_bytes, limit_seconds=5)


@pytest.mark.parametrize(("name", "share", "percent"), PROVEN)
def test_what_others_have_proven(name: str, share: float, percent: float) -> None:
    path = INSTANCES / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    problem = load_problem(path)
    found = solve_exact(problem, int(share * peak_of(problem)))
    assert found.proven
    # Where `auto` runs an op three times it may be faster than their model allows.
    assert 100 * (found.seconds / problem.seconds - 1) <= percent + 5e-4


def shortcut() -> Problem:
    """`wide` before `kept` needs less: its bytes have gone when the others come."""
    ops = (
        Op("kept", 1.0, 0, (), (0,)),
        Op("wide", 1.0, 50, (), (1,)),
        Op("end", 1.0, 0, (0, 1), (2,)),
    )
    return check_problem(Problem((Value(30), Value(1), Value(1)), ops, (2,)))


def test_the_problems_own_order_is_kept() -> None:
    found = solve_exact(shortcut(), 51)
    assert found.seconds == 4.0
    assert tuple(dict.fromkeys(found.schedule)) == (0, 1, 2)
    assert found.proven


def test_another_order_can_be_faster() -> None:
    assert PLANNERS["exact"](shortcut(), 51) == (1, 0, 2)


def test_what_is_given_as_a_start_is_kept_where_nothing_is_faster() -> None:
    problem = shortcut()
    start = (0, 1, 0, 2)
    assert solve_exact(problem, 51, start=start).schedule == start


def test_nothing_fits() -> None:
    with pytest.raises(InfeasibleError):
        PLANNERS["exact"](shortcut(), 50)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools", None)
    with pytest.raises(UsageError, match=r"pip install graphopt\[exact\]"):
        PLANNERS["exact"](shortcut(), 100)
