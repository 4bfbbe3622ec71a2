"""`auto` in the problem's own order beside the best of all such schedules, on graphs so small that all can be tried."""

import random

import pytest

from graphopt.planners.auto import in_order_curve
from graphopt.planners.curves.curve import Curve
from graphopt.planners.study.held import held_values
from graphopt.planners.study.study import Study
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import simulate
from tests.support.problems import random_problem

MOST_AGAIN = 3


def all_schedules(problem: Problem) -> list[tuple[int, ...]]:
    """Every schedule with first runs in order and at most `MOST_AGAIN` recomputations, none of what is held."""
    found: list[tuple[int, ...]] = []
    count = len(problem.ops)
    free = set(range(count)) - {problem.producer[v] for v in held_values(problem)}

    def extend(steps: tuple[int, ...], first: int, again: int) -> None:
        if first == count:
            found.append(steps)
        else:
            extend((*steps, first), first + 1, again)
        if again < MOST_AGAIN:
            for op_id in range(first):
                if op_id in free and steps[-1] != op_id:
                    extend((*steps, op_id), first, again + 1)

    extend((), 0, 0)
    return found


def optimum(problem: Problem) -> list[tuple[int, float]]:
    """Pareto points of peak and seconds over all schedules."""
    priced = sorted(
        {(result.peak_bytes, result.seconds) for result in (simulate(problem, s) for s in all_schedules(problem))}
    )
    best: list[tuple[int, float]] = []
    for peak, seconds in priced:
        if not best or seconds < best[-1][1]:
            best.append((peak, seconds))
    return best


def tries_more(problem: Problem, curve: Curve, peak: int) -> bool:
    """Whether the curve's schedule is one that `all_schedules` left out."""
    schedule = [p for p in curve if p.peak_bytes <= peak][-1].schedule
    return schedule not in set(all_schedules(problem))


@pytest.fixture(scope="module")
def compared() -> list[tuple[bool, bool, float]]:
    """For each of 60 problems: minimum reached, whole curve equal, worst ratio of seconds."""
    rng = random.Random(7)
    rows = []
    while len(rows) < 60:
        problem = random_problem(rng.randrange(10**6), 5)
        best = optimum(problem)
        curve = in_order_curve(Study(problem))
        worst = 1.0
        for peak, seconds in best:
            fitting = [p.seconds for p in curve if p.peak_bytes <= peak]
            if fitting and seconds:
                worst = max(worst, fitting[-1] / seconds)
            assert not fitting or fitting[-1] >= seconds or tries_more(problem, curve, peak)
        if len(best) > 1:
            same = [(p.peak_bytes, p.seconds) for p in curve] == best
            rows.append((curve[0].peak_bytes <= best[0][0], same, worst))
    return rows


def test_minimum_is_the_optimum_nearly_always(compared: list[tuple[bool, bool, float]]) -> None:
    assert sum(reached for reached, _, _ in compared) >= 0.9 * len(compared)


def test_curve_is_the_optimum_mostly(compared: list[tuple[bool, bool, float]]) -> None:
    assert sum(same for _, same, _ in compared) >= 0.8 * len(compared)


def test_seconds_are_near_the_optimum(compared: list[tuple[bool, bool, float]]) -> None:
    assert max(worst for _, _, worst in compared) <= 1.5
