"""The machine code of the planners finds what their Python finds, bit by bit."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.planners import pareto_curve
from graphopt.planners.moves.anneal import improve_by
from graphopt.planners.moves.evict import descend, lower
from graphopt.planners.moves.fill import fill, fill_under
from graphopt.planners.moves.walk import walk
from graphopt.planners.native import build, native_for, without_native
from graphopt.planners.orders.lower_order import reordered, slightly_lower
from graphopt.planners.schedules.flow import Network
from graphopt.planners.schedules.replay_once import recompute_once
from graphopt.planners.schedules.spans import Spans, point
from graphopt.problem.problem import Problem, Value, load_problem
from tests.support.problems import problems, random_problem, random_schedule

INSTANCES = Path(__file__).resolve().parents[4] / "shared" / "instances"
Found = TypeVar("Found")
Steps = tuple[list[int], float]

pytestmark = pytest.mark.skipif(build.library() is None, reason="needs a C++ compiler")

seeds = st.integers(0, 10**6)
shares = st.floats(0.0, 1.0)


def both(find: Callable[[Problem], Found], problem: Problem) -> tuple[Found, Found]:
    """What the machine code and the Python find; nothing is handed from one to the other."""
    with without_native():
        expected = find(replace(problem))
    return find(replace(problem)), expected


def steps(spans: Spans | None) -> Steps | None:
    return None if spans is None else (spans.op.tolist(), spans.seconds)


def between(spans: Spans, share: float) -> int:
    return int(spans.peak_bytes * share)


@given(problem=problems, seed=seeds)
def test_bytes_and_seconds(problem: Problem, seed: int) -> None:
    def find(problem: Problem) -> tuple[list[int], int, float]:
        spans = Spans(problem, random_schedule(problem, seed))
        return spans.memory.tolist(), spans.peak_bytes, spans.seconds

    own, expected = both(find, problem)
    assert own == expected


@given(problem=problems, seed=seeds, share=shares, moves=st.integers(1, 20), longest=st.integers(1, 30))
def test_lowered(problem: Problem, seed: int, share: float, moves: int, longest: int) -> None:
    def find(problem: Problem) -> list[int] | None:
        spans = Spans(problem, random_schedule(problem, seed))
        found = lower(spans, between(spans, share), moves, longest)
        return None if found is None else found.tolist()

    own, expected = both(find, problem)
    assert own == expected


@given(problem=problems, seed=seeds, share=shares)
def test_filled_under_a_level(problem: Problem, seed: int, share: float) -> None:
    def find(problem: Problem) -> Steps | None:
        spans = Spans(problem, random_schedule(problem, seed))
        return steps(fill_under(spans, int(spans.peak_bytes * (0.5 + share))))

    own, expected = both(find, problem)
    assert own == expected


@given(problem=problems, seed=seeds, batches=st.integers(1, 50), known=st.booleans())
def test_trajectories(problem: Problem, seed: int, batches: int, known: bool) -> None:
    def find(problem: Problem) -> list[tuple[int, float, list[int]]]:
        start = point(problem, random_schedule(problem, seed), "search")
        curve = (replace(start, seconds=start.seconds * 0.8),) if known else ()
        return [(p.peak_bytes, p.seconds, p.steps.tolist()) for p in fill(problem, start, "search", batches, curve)]

    own, expected = both(find, problem)
    assert own == expected


@given(problem=problems, share=shares)
def test_walks(problem: Problem, share: float) -> None:
    def find(problem: Problem) -> list[int] | None:
        found = walk(problem, between(Spans(problem, range(len(problem.ops))), share))
        return None if found is None else found.tolist()

    own, expected = both(find, problem)
    assert own == expected


@given(problem=problems, seed=seeds)
def test_what_was_not_kept_runs_once_more(problem: Problem, seed: int) -> None:
    rng = random.Random(seed)
    end = rng.randint(0, len(problem.ops))
    kept = {v for v, maker in enumerate(problem.producer) if maker < 0 or rng.random() < 0.5}
    own, expected = both(lambda p: recompute_once(p, end, kept).tolist(), problem)
    assert own == expected


@given(problem=problems)
def test_orders(problem: Problem) -> None:
    own, expected = both(lambda p: (slightly_lower(p), reordered(p)), problem)
    assert own == expected


@given(seed=st.integers(0, 10**6), ops=st.integers(6, 60), share=shares)
def test_local_search(seed: int, ops: int, share: float) -> None:
    def find(problem: Problem) -> list[tuple[int, ...]]:
        first = Spans(problem, range(len(problem.ops)))
        low = descend(problem, first.op, "search", 0.9)
        level = low[-1].peak_bytes + int(share * (first.peak_bytes - low[-1].peak_bytes)) if low else first.peak_bytes
        starts = [p for p in low if p.peak_bytes <= level]
        return [improve_by(problem, p.schedule, level, 900, seed) for p in starts[:2]]

    own, expected = both(find, random_problem(seed, ops, training=True))
    assert own == expected


@given(seed=st.integers(0, 10**6))
def test_cuts(seed: int) -> None:
    def find() -> tuple[list[list[bool]], list[int]]:
        rng = random.Random(seed)
        network = Network(8)
        edges = [network.edge(rng.randrange(8), rng.randrange(8), rng.randrange(9)) for _ in range(16)]
        found = [network.source_side()]
        for _ in range(3):
            network.price(np.array(edges), np.array([rng.randrange(12) for _ in edges]))
            found.append(network.source_side())
        return found, network.room.tolist()

    with without_native():
        expected = find()
    own = find()
    # one maximum flow is as good as another; the cut nearest to the source is the same for all
    assert own[0] == expected[0]


@pytest.mark.parametrize("name", ["checkmate_vgg_unet_train", "random_layered_n100", "dtr_unet"])
def test_whole_curves_of_the_literature(name: str) -> None:
    path = INSTANCES / f"{name}.json"
    if not path.exists():
        pytest.skip("needs ../shared/instances")
    own, expected = both(pareto_curve, load_problem(path))
    assert [(p.peak_bytes, p.seconds, p.schedule) for p in own] == [
        (p.peak_bytes, p.seconds, p.schedule) for p in expected
    ]


def test_numbers_that_are_not_exact_in_floating_point_are_left_to_python() -> None:
    problem = random_problem(5)
    assert native_for(problem) is not None
    assert native_for(replace(problem, values=(Value(1 << 53), *problem.values[1:]))) is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda problem: pickle.loads(pickle.dumps(problem))])
def test_a_problem_that_was_planned_can_be_copied(copied: Callable[[Problem], Problem]) -> None:
    problem = random_problem(9, 20, training=True)
    curve = pareto_curve(problem)
    again = copied(problem)
    assert again == problem and "native" not in again.__dict__
    assert [p.schedule for p in pareto_curve(again)] == [p.schedule for p in curve]


def test_without_a_compiler_it_is_said_and_plans_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(7, 20, training=True)
    expected = [(p.peak_bytes, p.seconds) for p in pareto_curve(replace(problem))]
    monkeypatch.setenv("CXX", "no-such-compiler")
    build._library.cache_clear()
    with pytest.warns(UserWarning, match="no-such-compiler"):
        assert native_for(problem) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [(p.peak_bytes, p.seconds) for p in pareto_curve(problem)] == expected
    monkeypatch.undo()
    build._library.cache_clear()


def test_what_the_compiler_says_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpp").mkdir()
    (tmp_path / "cpp" / "wrong.cpp").write_text("this is no C++")
    monkeypatch.setattr(build, "_SOURCES", tmp_path / "cpp")
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path / "cache"))
    build._library.cache_clear()
    with pytest.warns(UserWarning, match="wrong.cpp"):
        assert build.library() is None
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    build._library.cache_clear()
