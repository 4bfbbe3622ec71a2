"""The machine code is compiled once; where it cannot be, that is said, and plans are made without it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from graphopt.planners import pareto_curve
from graphopt.planners.native import build
from graphopt.planners.native.plain import PlainLoops
from graphopt.planners.study.study import Study
from graphopt.problem.schedule import check_schedule, simulate
from tests.support.problems import random_problem

needs_compiler = pytest.mark.skipif(build.library() is None, reason="needs a C++ compiler")


def test_without_a_compiler_it_is_said_once_and_plans_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(7, 20, training=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    build.library.cache_clear()
    with pytest.warns(UserWarning, match="local search are left out: no C.. compiler .no-such-compiler"):
        assert isinstance(Study(problem).loops, PlainLoops)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve = pareto_curve(problem)
    assert len(curve) > 1
    for point in curve:
        assert simulate(problem, check_schedule(problem, point.schedule)).peak_bytes == point.peak_bytes
    monkeypatch.undo()
    build.library.cache_clear()


@needs_compiler
def test_what_the_compiler_says_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpp").mkdir()
    (tmp_path / "cpp" / "wrong.cpp").write_text("this is no C++")
    monkeypatch.setattr(build, "_SOURCES", tmp_path / "cpp")
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path / "cache"))
    build.library.cache_clear()
    with pytest.warns(UserWarning, match="wrong.cpp"):
        assert build.library() is None
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    build.library.cache_clear()
