"""Local search: never worse, better with more time, the same for the same seed, exact in its bookkeeping."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.planners import minimum_bytes, pareto_curve
from graphopt.planners.moves.anneal import improve, improve_by
from graphopt.planners.moves.anneal_track import Track
from graphopt.planners.reorder import reorder_curve
from graphopt.planners.sqrt_n import sqrt_n_curve
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import check_schedule, simulate
from tests.planners.test_against_optimum import optimum
from tests.support.problems import problems, random_problem, random_schedule


def same_as_simulated(track: Track) -> None:
    result = simulate(track.problem, track.schedule)
    assert track.memory[:-1].tolist() == result.live_bytes.tolist()
    assert track.seconds == pytest.approx(result.seconds)


@pytest.mark.parametrize("seed", range(40))
def test_a_track_is_what_the_simulator_says_and_goes_back(seed: int) -> None:
    problem = random_problem(seed, 4 + seed % 17)
    schedule, rng = random_schedule(problem, seed), random.Random(seed)
    track = Track(problem, schedule)
    log: list[tuple[int, int]] = []
    for _ in range(25):
        again = [label for label in track.labels if track.runs[track.op_at[label]][0] != label]
        if again and rng.random() < 0.5:
            label = rng.choice(again)
            log.append((label, track.op_at[label]))
            track.delete(label)
        else:
            stop = rng.choice([*track.labels[1:], track.end])
            ops = [i for i, op in enumerate(problem.ops) if op.recomputable and track.runs[i][0] < stop]
            room = track.room_before(stop, 1)
            if ops and room:
                track.insert(room[0], rng.choice(ops))
                log.append((room[0], -1))
        same_as_simulated(track)
    for label, op in reversed(log):
        if op < 0:
            track.delete(label)
        else:
            track.insert(label, op)
    assert tuple(track.schedule) == schedule
    same_as_simulated(track)


@settings(max_examples=60, deadline=None)
@given(problem=problems, share=st.floats(0.0, 1.0), seed=st.integers(0, 99))
def test_never_worse_and_inside_the_budget(problem: Problem, share: float, seed: int) -> None:
    curve = pareto_curve(problem)
    start = curve[int(share * (len(curve) - 1))]
    found = improve_by(problem, start.schedule, start.peak_bytes, 200, seed)
    check_schedule(problem, found)
    result = simulate(problem, found)
    assert result.peak_bytes <= start.peak_bytes
    assert result.seconds <= start.seconds


@pytest.mark.parametrize("seed", range(4))
def test_more_moves_are_never_worse_and_the_same_moves_the_same(seed: int) -> None:
    problem = random_problem(seed, 40, training=True)
    start = sqrt_n_curve(problem)[0]
    seconds = []
    for moves in (0, 300, 1000, 3000):
        found = improve_by(problem, start.schedule, start.peak_bytes, moves, seed)
        assert found == improve_by(problem, start.schedule, start.peak_bytes, moves, seed)
        seconds.append(simulate(problem, found).seconds)
    assert seconds == sorted(seconds, reverse=True)


def test_the_optimum_is_found_nearly_always() -> None:
    """On graphs that can be tried out, from schedules that recompute at random, under all budgets that they fit."""
    reached = []
    for seed in range(4000):
        problem = random_problem(seed, 5)
        schedule = random_schedule(problem, seed + 1)
        start = simulate(problem, schedule)
        eager = simulate(problem, range(5)).peak_bytes
        if start.peak_bytes < eager:
            for peak, seconds in optimum(problem):
                if start.peak_bytes <= peak < eager and seconds < start.seconds:
                    found = improve_by(problem, schedule, peak, 400, 1)
                    reached.append(simulate(problem, found).seconds <= seconds * (1 + 1e-9))
    assert len(reached) > 20
    assert sum(reached) >= 0.9 * len(reached)


def test_another_order_of_first_runs_is_kept() -> None:
    found = 0
    for seed in range(40):
        problem = random_problem(seed, 24)
        for start in reorder_curve(problem)[:-1]:
            faster = improve_by(problem, start.schedule, start.peak_bytes, 400)
            assert simulate(problem, faster).peak_bytes <= start.peak_bytes
            assert tuple(dict.fromkeys(faster)) == tuple(dict.fromkeys(start.schedule))
            found += faster != start.schedule
    assert found


def test_seconds_become_moves() -> None:
    problem = random_problem(2, 60, training=True)
    least = minimum_bytes(problem)
    start = pareto_curve(problem)[0].schedule
    assert improve(problem, start, least, 0.0) == start
    assert simulate(problem, improve(problem, start, least, 0.2)).peak_bytes <= least
