"""Curves that outlive the process: a second start of the same script plans nothing.

A file holds schedules, which are judged anew where they are read: nothing in it is believed. It is found by all that
the planners see, and by the planners themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from graphopt import planners
from graphopt.base.cache_directory import cache_directory
from graphopt.base.errors import PlanMismatchError, ScheduleError
from graphopt.cost_models.cache import cache_path, read_entries, write_entries
from graphopt.problem.problem import Problem, problem_to_json
from graphopt.problem.runs import runs_of, schedule_of
from graphopt.problem.schedule import Schedule, check_schedule

_KIND = "graphopt.curve/1"
_NAME = "curve"
#: Files that are kept, of which the oldest go: up to some megabytes each for a thousand ops.
_MOST_FILES = 32
#: Fewer ops are planned sooner than a file is read.
_FEWEST_OPS = 64


def kept_curve(problem: Problem) -> list[tuple[str, Schedule]]:
    """(planner, schedule) of the curve that was found for this very problem; [] where none is kept."""
    if len(problem.ops) < _FEWEST_OPS:
        return []
    key = _key(problem)
    points = read_entries(cache_path(_NAME, key), _KIND, key).get("points")
    try:
        return [_point(problem, item) for item in points] if isinstance(points, list) else []
    except (PlanMismatchError, ScheduleError, ValueError):
        return []


def keep_curve(problem: Problem, curve: Iterable[tuple[str, Schedule]]) -> None:
    """Keep a curve. A folder that cannot be written is no error."""
    if len(problem.ops) < _FEWEST_OPS:
        return
    key = _key(problem)
    write_entries(cache_path(_NAME, key), _KIND, key, {"points": [[name, runs_of(each)] for name, each in curve]})
    _drop_oldest()


def _point(problem: Problem, item: object) -> tuple[str, Schedule]:
    match item:
        case [str() as planner, str() as runs] if planner.isidentifier():
            return planner, check_schedule(problem, schedule_of(runs))
    raise ValueError(f"no point of a curve: {item!r}")


def _key(problem: Problem) -> str:
    seen = hashlib.sha256(json.dumps(problem_to_json(problem)).encode()).hexdigest()
    return f"{seen} planners={_sources()}"


@cache
def _sources() -> str:
    digest = hashlib.sha256()
    folder = Path(planners.__file__).parent
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".h")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _drop_oldest() -> None:
    with contextlib.suppress(OSError):  # another process may drop them meanwhile
        files = sorted(cache_directory().glob(f"{_NAME}-*.json"), key=lambda path: path.stat().st_mtime)
        for path in files[:-_MOST_FILES]:
            path.unlink()
