"""Plan files: exact round trips, and every way in which a file can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.base import records
from graphopt.base.errors import PlanMismatchError, UsageError
from graphopt.problem.plan import SCHEMA, Plan
from tests.support.plans import make_checkpoint, make_plan


def test_round_trip_is_exact(tmp_path: Path) -> None:
    plan = make_plan(graphs=3)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert list(Plan.load(tmp_path / "plan.json").resident_bytes) == list(plan.resident_bytes)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


@given(
    seconds=st.floats(min_value=0, max_value=1e9),
    sizes=st.lists(st.integers(0, 2**63 - 1), max_size=4),
    text=st.text(),
    schedule=st.lists(st.integers(0, 99)),
)
def test_any_plan_survives_the_codec(seconds: float, sizes: list[int], text: str, schedule: list[int]) -> None:
    checkpoint = replace(make_checkpoint(0), source=text, shape=tuple(sizes), recompute_seconds=seconds)
    graph = replace(make_plan().graphs[0], seconds=seconds, schedule=tuple(schedule), checkpoints=(checkpoint,))
    plan = replace(make_plan(), model=text, graphs=(graph,), resident_bytes={text: 7})
    assert records.decode(Plan, json.loads(json.dumps(records.encode(plan))), "plan") == plan


def test_saving_over_an_old_plan_leaves_it_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    make_plan().save(path)
    with pytest.raises(ValueError):
        replace(make_plan(), budget_bytes=float("nan")).save(path)  # type: ignore[arg-type]
    assert Plan.load(path) == make_plan()


def test_a_place_that_cannot_be_used_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        make_plan().save(tmp_path / "nowhere" / "plan.json")
    with pytest.raises(UsageError, match="cannot read"):
        Plan.load(tmp_path / "nothing.json")
    with pytest.raises(UsageError, match="cannot read"):
        Plan.load(tmp_path)


def _set(field: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(root: dict[str, Any]) -> None:
        place: Any = root
        *way, last = field.split("/")
        for step in way:
            place = place[int(step) if isinstance(place, list) else step]
        place[int(last) if isinstance(place, list) else last] = value

    return change


def _drop(root: dict[str, Any]) -> None:
    del root["graphs"][0]["seconds"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("budget_bytes", "8GiB"), "plan.budget_bytes: expected a whole number"),
        (_set("budget_bytes", True), "plan.budget_bytes: expected a whole number"),
        (_set("budget_bytes", -1), "plan.budget_bytes"),
        (_set("budget_bytes", 2**63), "plan.budget_bytes"),
        (_set("budget_bytes", 1.5), "plan.budget_bytes"),
        (_set("model", None), "plan.model: expected text, got None"),
        (_set("graphs", {}), "plan.graphs: expected a list"),
        (_set("graphs/0", 3), r"plan.graphs\[0\]: expected an object"),
        (_set("graphs/0/seconds", -1), r"plan.graphs\[0\].seconds: expected a number, at least 0"),
        (_set("graphs/0/seconds", 10**400), r"plan.graphs\[0\].seconds"),
        (_set("graphs/0/schedule", [0, "1"]), r"plan.graphs\[0\].schedule\[1\]"),
        (_set("graphs/0/checkpoints/1/shape", [[]]), r"checkpoints\[1\].shape\[0\].*got a list"),
        (_set("resident_bytes", []), "plan.resident_bytes: expected an object"),
        (_set("resident_bytes/parameters", 0.5), "plan.resident_bytes.parameters"),
        (_set("extra", 1), "plan.extra: not a field"),
        (_drop, r"plan.graphs\[0\].seconds: missing"),
    ],
)
def test_a_malformed_field_is_named(change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    data = records.encode(make_plan())
    change(data)
    path = tmp_path / "plan.json"
    # The checksum is right: the field alone must be what is refused.
    path.write_text(json.dumps({"schema": SCHEMA, "checksum": records.checksum(data), "plan": data}))
    with pytest.raises(PlanMismatchError, match=message) as caught:
        Plan.load(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 6


def test_a_changed_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    make_plan().save(path)
    path.write_text(path.read_text().replace('"budget_bytes": 157286400', '"budget_bytes": 157286401'))
    with pytest.raises(PlanMismatchError, match="checksum: does not match"):
        Plan.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a readable JSON"),
        ("[]", "expected an object"),
        ("{}", "schema: expected"),
        ('{"schema": "graphopt.plan/1"}', "graphopt.plan/1"),
        ('{"schema": "graphopt.plan/7"}', "checksum: missing"),
        ('{"schema": "graphopt.plan/7", "checksum": 1, "plan": {}}', "checksum: does not match"),
        ('{"schema": "graphopt.plan/1", "schema": "graphopt.plan/1"}', "twice"),
        ('{"schema": NaN}', "NaN"),
        ("[" * 100_000, "not a readable JSON"),
        ("9" * 10_000, "not a readable JSON|expected an object"),
    ],
)
def test_what_is_no_plan_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanMismatchError, match=message):
        Plan.load(path)


def test_bytes_that_are_no_text_and_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"\x80\x04\x95")
    with pytest.raises(PlanMismatchError, match="not a readable JSON"):
        Plan.load(path)
    monkeypatch.setattr(records, "MAX_FILE_BYTES", 2)
    with pytest.raises(PlanMismatchError, match="larger than 2 bytes"):
        Plan.load(path)
