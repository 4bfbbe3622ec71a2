"""Whatever a file holds is either planned with figures that are right, or refused with the field that is wrong."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.base.errors import InfeasibleError, ProblemError
from graphopt.planners import PLANNERS, Study, minimum_bytes
from graphopt.planners.bounds.lower_bound import lower_bound_seconds
from graphopt.problem.problem import (
    LEAST_SECONDS,
    MOST_BYTES,
    MOST_SECONDS,
    Op,
    Problem,
    Value,
    check_problem,
    load_problem,
    problem_from_json,
    problem_to_json,
)
from graphopt.problem.schedule import Schedule, check_schedule, simulate
from tests.support.problems import problems

GOOD: dict[str, Any] = {
    "schema": "graphopt.problem/1",
    "values": [{"bytes": 4}, {"bytes": 8}, {"bytes": 2}, {"bytes": 3}],
    "ops": [
        {"name": "a", "seconds": 1, "workspace": 3, "inputs": [2], "outputs": [0]},
        {"name": "b", "seconds": 0.5, "inputs": [0], "outputs": [1], "pinned": True},
        {"name": "c", "seconds": 2, "inputs": [0, 1], "outputs": [3], "backward": True, "recomputable": False},
    ],
    "outputs": [3],
}
HUGE = "9" * 5000
#: What stands in a file's place of something else, as JSON text.
WRONG = [
    *("null", "true", "false", '""', '"1"', '"\\ud800"', "[]", "{}", "[[]]", "[0]", "[true]", '{"bytes": 1}'),
    *("-1", "0", "1", "1.0", "-0.0", "1.5", str(2**50), str(2**50 + 1), str(2**60), str(2**63 - 1), str(2**63)),
    *(f"1{'0' * 400}", HUGE, f"-{HUGE}", "1e30", "1e31", "1e308", "1e400", "-1e400", "1e-30", "1e-31", "5e-324"),
    *("NaN", "Infinity", "-Infinity", "[" * 200 + "]" * 200),
]
FIELDS = ("problem", "schema", "values", "bytes", "ops", "op ", "name", "seconds", "workspace", "inputs", "outputs")
FIELDS += ("backward", "recomputable", "pinned", "not a readable JSON file")
#: Those that take milliseconds; `exact` takes as long as it is given.
QUICK = [name for name in PLANNERS if name != "exact"]


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every container and key (or index) of JSON data."""
    items = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    return [(data, key) for key, _ in items] + [place for _, item in items for place in places(item)]


def peak_bytes(problem: Problem, schedule: Schedule) -> int:
    """The simulator's definition, step by step in Python's whole numbers."""
    peak = 0
    for step, op_id in enumerate(schedule):
        op = problem.ops[op_id]
        alive = set(op.outputs)
        for value, maker in enumerate(problem.producer):
            if maker < 0 or value in alive or maker not in schedule[: step + 1]:
                continue
            for later in schedule[step:]:
                if value in problem.ops[later].inputs:
                    alive.add(value)
                if value in problem.ops[later].outputs:
                    break
            else:
                if value in problem.outputs:
                    alive.add(value)
        peak = max(peak, sum(problem.values[v].bytes for v in alive) + op.workspace_bytes)
    return peak


def check_planned(problem: Problem) -> None:
    """Every quick planner's smallest and largest schedule is valid, and is what it is said to be."""
    study = Study(problem)
    for name in QUICK:
        for budget in (0, minimum_bytes(study), MOST_BYTES, 2**63 - 1):
            try:
                schedule = check_schedule(problem, PLANNERS[name](study, budget))
            except InfeasibleError as error:
                assert error.minimum_bytes > budget
                continue
            found = simulate(problem, schedule)
            assert found.peak_bytes == peak_bytes(problem, schedule) <= budget
            assert found.seconds == pytest.approx(math.fsum(problem.ops[i].seconds for i in schedule))
            bound = lower_bound_seconds(study, budget)
            assert problem.seconds * (1 - 1e-9) <= bound <= found.seconds * (1 + 1e-9)


@given(st.data())
@settings(max_examples=400)
def test_anything_in_any_place(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    wrong: dict[str, Any] = json.loads(json.dumps(GOOD))
    marks = {}
    for number in range(data.draw(st.integers(1, 2))):
        container, key = data.draw(st.sampled_from(places(wrong)))
        container[key] = mark = f"put {number} here"
        marks[json.dumps(mark)] = data.draw(st.sampled_from(WRONG))
    text = json.dumps(wrong)
    for mark, item in marks.items():
        text = text.replace(mark, item)
    path = tmp_path_factory.mktemp("problem") / "p.json"
    path.write_text(text, encoding="utf-8")
    begin = time.process_time()
    try:
        problem = load_problem(path)
    except ProblemError as error:
        assert any(field in str(error).partition("p.json: ")[2] for field in FIELDS), error
        assert len(str(error)) < 400 + len(str(path))
    else:
        check_planned(problem)
    assert time.process_time() - begin < 2


@given(problem=problems, share=st.sampled_from([0.25, 0.999, 1.0]), time_scale=st.sampled_from([1e-30, 1.0, 2e29]))
@settings(max_examples=60)
def test_problems_at_the_bounds_are_planned_as_small_ones_are(
    problem: Problem, share: float, time_scale: float
) -> None:
    most = sum(v.bytes for v in problem.values) + max(op.workspace_bytes for op in problem.ops)
    factor = int(MOST_BYTES * share) // max(1, most)
    large = Problem(
        tuple(Value(v.bytes * factor) for v in problem.values),
        tuple(
            replace(op, workspace_bytes=op.workspace_bytes * factor, seconds=op.seconds * time_scale)
            for op in problem.ops
        ),
        problem.outputs,
    )
    assert problem_from_json(json.loads(json.dumps(problem_to_json(large)))) == large
    check_planned(large)
    # searches choose between alike by quotients of seconds and bytes, which round
    assert minimum_bytes(large) == pytest.approx(minimum_bytes(problem) * factor, rel=0.1)


def chain(sizes: list[int], workspace: int = 0, seconds: float = 1.0) -> Problem:
    ops = [Op(f"{i}", seconds, workspace, (i - 1,) if i else (), (i,)) for i in range(len(sizes))]
    return Problem(tuple(map(Value, sizes)), tuple(ops), (len(sizes) - 1,))


@pytest.mark.parametrize(
    ("problem", "named"),
    [
        (chain([MOST_BYTES, 1]), r"values and ops: .* \(1,125,899,906,842,625\) .* at most 2\*\*50"),
        (chain([2**49, 2**49], workspace=1), r"the largest workspace \(1\) are together at most 2\*\*50"),
        (chain([1] * 8, workspace=2**63 - 1), "workspace"),
        (chain([2**62] * 8), "values"),
    ],
)
def test_sums_are_bounded(problem: Problem, named: str) -> None:
    with pytest.raises(ProblemError, match=named):
        check_problem(problem)
    with pytest.raises(ProblemError, match=r"bytes|workspace"):
        problem_from_json(problem_to_json(problem))


def test_what_is_at_the_bounds_is_planned() -> None:
    for problem in (
        chain([MOST_BYTES - 1, 1]),
        chain([2**49, 2**49 - 1], workspace=1),
        chain([1] * 8, workspace=MOST_BYTES - 8),
        chain([0] * 8),
        chain([1] * 8, seconds=LEAST_SECONDS),
        chain([1] * 8, seconds=MOST_SECONDS),
        chain([1] * 8, seconds=0.0),
    ):
        check_planned(problem_from_json(problem_to_json(problem)))


@pytest.mark.parametrize(
    ("spoilt", "named"),
    [
        (lambda text: text.encode("utf-8-sig"), "BOM"),
        (lambda text: text.encode("utf-16"), "codec"),
        (lambda text: text.replace('"a"', '"ä"').encode("latin-1"), "codec"),
        (lambda text: text.replace('"bytes": 4', '"bytes": 4, "bytes": 5').encode(), "'bytes' stands twice"),
        (lambda text: text.replace('"outputs": [3]}', '"outputs": [3], "ops": []}').encode(), "'ops' stands twice"),
        (lambda text: (text[:-1] + ', "more": ' + "[" * 10**6 + "]" * 10**6 + "}").encode(), "not a readable JSON"),
        (lambda text: (text + " {}").encode(), "Extra data"),
        (lambda text: text.replace('"bytes": 4', f'"bytes": {HUGE}').encode(), r"values\[0\]\.bytes: expected a whole"),
        (lambda text: text.replace("0.5", HUGE).encode(), r"ops\[1\]\.seconds: expected 0, or a number from"),
        (lambda text: text.replace('"inputs": [2]', f'"inputs": [{HUGE}]').encode(), r"ops\[0\]\.inputs\[0\]"),
        (lambda _: b"\0" * 1000, "not a readable JSON"),
    ],
)
def test_spoilt_files_are_refused_and_the_cause_is_named(
    tmp_path: Path, spoilt: Callable[[str], bytes], named: str
) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(spoilt(json.dumps(GOOD)))
    begin = time.process_time()
    with pytest.raises(ProblemError, match=rf"p\.json: .*{named}"):
        load_problem(path)
    assert time.process_time() - begin < 2


@given(st.integers(0, len(json.dumps(GOOD)) - 1))
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.mktemp("problem") / "p.json"
    path.write_bytes(json.dumps(GOOD).encode()[:length])
    with pytest.raises(ProblemError, match="not a readable JSON file"):
        load_problem(path)


def test_a_file_without_end_is_refused() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("no file without end here")
    with pytest.raises(ProblemError, match="larger than 268,435,456 bytes"):
        load_problem("/dev/zero")


@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_long_lists_of_nothing_are_refused_at_once(field: str) -> None:
    data: dict[str, Any] = json.loads(json.dumps(GOOD))
    data["ops"][0][field] = [0] * 10**6
    begin = time.process_time()
    with pytest.raises(ProblemError, match=f"names an {field[:-1]} twice"):
        problem_from_json(data)
    assert time.process_time() - begin < 2


def test_an_op_that_reads_ever_so_much_is_planned_in_time() -> None:
    """Twenty ops that read thousands of values each, for a backward: every look at all of them was one too many."""
    count, joins = 4000, 20
    forward = [Op("", 1.0, 0, (i - 1,) if i else (), (i,)) for i in range(count)]
    forward += [Op("", 1.0, 0, tuple(range(count)), (count + j,)) for j in range(joins)]
    backward = []
    for j in range(joins):
        gradient = (count + joins + j - 1,) if j else ()
        backward.append(Op("", 1.0, 0, (count + joins - 1 - j, *gradient), (count + joins + j,), backward=True))
    sizes = [2] * (count + joins) + [1] * joins
    problem = check_problem(Problem(tuple(map(Value, sizes)), (*forward, *backward), (len(sizes) - 1,)))
    begin = time.process_time()
    assert minimum_bytes(problem) <= simulate(problem, range(len(problem.ops))).peak_bytes
    assert time.process_time() - begin < 20  # minutes, before
