"""Problems as data: what is written is read again, and what is malformed is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from graphopt.base.errors import ProblemError
from graphopt.problem.problem import Problem, load_problem, problem_from_json, problem_to_json, save_problem
from tests.support.problems import problems

GOOD: dict[str, Any] = {
    "schema": "graphopt.problem/1",
    "values": [{"bytes": 4}, {"bytes": 8}, {"bytes": 2}],
    "ops": [
        {"name": "a", "seconds": 1, "workspace": 3, "inputs": [2], "outputs": [0]},
        {"name": "b", "seconds": 0.5, "inputs": [0], "outputs": [1], "backward": True, "recomputable": False},
    ],
    "outputs": [1],
}


def edited(edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(GOOD))
    edit(data)
    return data


@given(problems)
def test_json_round_trip(problem: Problem) -> None:
    assert problem_from_json(json.loads(json.dumps(problem_to_json(problem)))) == problem


def test_file_round_trip(tmp_path: Path) -> None:
    problem = problem_from_json(GOOD)
    save_problem(problem, tmp_path / "p.json")
    assert load_problem(tmp_path / "p.json") == problem


def test_left_out_fields_have_their_defaults() -> None:
    first, second = problem_from_json(GOOD).ops
    assert (first.backward, first.recomputable, first.workspace_bytes) == (False, True, 3)
    assert (second.backward, second.recomputable, second.workspace_bytes) == (True, False, 0)
    assert not first.pinned
    assert problem_from_json(edited(lambda d: d["ops"][0].update(pinned=True))).ops[0].pinned


def test_what_is_derived() -> None:
    problem = problem_from_json(GOOD)
    assert problem.producer == (0, 1, -1)
    assert problem.readers == ((1,), (), (0,))
    assert problem.first_backward == 1
    assert problem.seconds == 1.5


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda d: d.update(schema="other/1"), r"problem\.schema"),
        (lambda d: d.pop("schema"), r"problem\.schema"),
        (lambda d: d.update(values={}), "values: expected a list, got dict"),
        (lambda d: d["values"].__setitem__(1, 3), r"values\[1\]: expected an object, got int"),
        (lambda d: d["values"][2].pop("bytes"), r"values\[2\]\.bytes"),
        (lambda d: d["values"][0].update(bytes=-1), r"values\[0\]\.bytes"),
        (lambda d: d["values"][0].update(bytes=True), r"values\[0\]\.bytes"),
        (lambda d: d["values"][0].update(bytes=1.5), r"values\[0\]\.bytes"),
        (lambda d: d["values"][0].update(bytes=2**63), r"values\[0\]\.bytes"),
        (lambda d: d.update(ops=[]), "ops: a problem needs at least one op"),
        (lambda d: d.pop("ops"), "ops: expected a list, got NoneType"),
        (lambda d: d["ops"].__setitem__(0, []), r"ops\[0\]: expected an object"),
        (lambda d: d["ops"][0].update(name=5), r"ops\[0\]\.name"),
        (lambda d: d["ops"][1].update(seconds=-1), r"ops\[1\]\.seconds"),
        (lambda d: d["ops"][1].update(seconds=float("nan")), r"ops\[1\]\.seconds"),
        (lambda d: d["ops"][1].update(seconds=float("inf")), r"ops\[1\]\.seconds"),
        (lambda d: d["ops"][1].update(seconds="1"), r"ops\[1\]\.seconds"),
        (lambda d: d["ops"][1].pop("seconds"), r"ops\[1\]\.seconds"),
        (lambda d: d["ops"][0].update(workspace=-3), r"ops\[0\]\.workspace"),
        (lambda d: d["ops"][0].update(inputs=None), r"ops\[0\]\.inputs"),
        (lambda d: d["ops"][0].update(outputs=["0"]), r"ops\[0\]\.outputs\[0\]"),
        (lambda d: d["ops"][0].update(backward=1), r"ops\[0\]\.backward"),
        (lambda d: d["ops"][0].update(recomputable="yes"), r"ops\[0\]\.recomputable"),
        (lambda d: d["ops"][0].update(pinned=1), r"ops\[0\]\.pinned"),
        (lambda d: d["ops"][1].update(inputs=[9]), r"op 1 \('b'\): there is no value 9; 3 values"),
        (lambda d: d["ops"][1].update(inputs=[0, 0]), r"op 1 \('b'\) names an input twice"),
        (lambda d: d["ops"][1].update(outputs=[0]), r"op 1 \('b'\): value 0 is produced by two ops"),
        (lambda d: d["ops"].reverse(), r"op 0 \('b'\) reads value 0 before it is produced"),
        (lambda d: d["ops"][0].update(inputs=[0]), r"op 0 \('a'\) reads value 0 before it is produced"),
        (lambda d: d.update(outputs=[3]), "outputs: there is no value 3"),
        (lambda d: d.update(outputs=[1, 1]), "outputs names a value twice"),
        (lambda d: d.update(outputs=None), "outputs: expected a list"),
    ],
)
def test_malformed_field_is_named(edit: Callable[[dict[str, Any]], object], named: str) -> None:
    with pytest.raises(ProblemError, match=named):
        problem_from_json(edited(edit))


@pytest.mark.parametrize("data", [None, 3, [], "text"])
def test_what_is_no_object_is_refused(data: object) -> None:
    with pytest.raises(ProblemError, match="problem: expected an object"):
        problem_from_json(data)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ProblemError, match=r"broken\.json"):
        load_problem(path)


def test_malformed_file_is_named_with_its_field(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(edited(lambda d: d.update(outputs=[3]))))
    with pytest.raises(ProblemError, match=r"p\.json: outputs: there is no value 3"):
        load_problem(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"nowhere\.json"):
        load_problem(tmp_path / "nowhere.json")
