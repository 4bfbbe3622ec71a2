"""The planners' own measure of a schedule is the simulator's."""

import numpy as np
import pytest

from graphopt.planners import pareto_curve
from graphopt.planners.moves.fill import fill, hopeless
from graphopt.planners.schedules.layout import stable_order
from graphopt.planners.schedules.spans import Spans, highest, range_maxima
from graphopt.planners.schedules.timeline import Timeline
from graphopt.planners.sqrt_n import sqrt_n_curve
from graphopt.problem.schedule import simulate
from tests.support.problems import random_problem, random_schedule


@pytest.mark.parametrize("seed", range(40))
def test_spans_and_what_is_left_of_them_are_what_the_simulator_says(seed: int) -> None:
    problem = random_problem(seed, 12)
    spans = Spans(problem, random_schedule(problem, seed))
    result = simulate(problem, spans.op.tolist())
    assert spans.memory.tolist() == result.live_bytes.tolist()
    assert spans.seconds == pytest.approx(result.seconds)
    line = Timeline(spans)
    again, first, size = spans.recomputations()
    assert [line.gap(step) for step in again.tolist()] == list(
        zip(first.tolist(), again.tolist(), size.tolist(), strict=True)
    )
    gone: set[int] = set()
    for step in again.tolist():
        if step not in gone:
            gone.update(line.drop(step)[0])
    left = simulate(problem, [op for step, op in enumerate(spans.op.tolist()) if step not in gone])
    assert (line.peak_bytes, line.seconds) == (left.peak_bytes, pytest.approx(left.seconds))


def test_range_maxima_are_those_of_each_range() -> None:
    rng = np.random.default_rng(0)
    memory = rng.integers(0, 100, 50)
    start, stop = rng.integers(0, 50, 200), rng.integers(0, 51, 200)
    expected = [max(memory[a:b].tolist(), default=0) for a, b in zip(start, stop, strict=True)]
    assert range_maxima(memory, start, stop).tolist() == expected


@pytest.mark.parametrize("bound", [1 << 16, (1 << 16) + 1])
def test_equal_keys_stay_in_order_however_they_are_sorted(bound: int) -> None:
    keys = np.random.default_rng(0).choice([0, 7, bound // 2, bound - 1], 300)
    assert stable_order(keys, bound).tolist() == sorted(range(300), key=lambda at: keys[at])


def test_the_highest_of_nothing_is_nothing() -> None:
    assert (highest(np.array([3, 9, 4])), highest(np.array([], dtype=np.int64))) == (9, 0)


def test_a_trajectory_far_above_a_known_curve_ends() -> None:
    problem = random_problem(3, 30)
    known = pareto_curve(problem)
    beaten = hopeless(problem, known)
    assert not any(beaten(p.peak_bytes, p.seconds) for p in known)
    assert beaten(known[-1].peak_bytes, 1.1 * problem.seconds)
    assert not beaten(known[0].peak_bytes - 1, 10 * problem.seconds)
    for seed in sqrt_n_curve(problem):
        assert len(fill(problem, seed, "sqrt_n", known=known)) <= len(fill(problem, seed, "sqrt_n"))
