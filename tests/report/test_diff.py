"""`graphopt diff`: what changed from one plan or report to another, and what is no plan."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graphopt.base.errors import PlanMismatchError
from graphopt.cli import cli
from graphopt.problem.plan import Plan
from graphopt.report.diff import compare, diff_text, diff_to_json, load_planned
from graphopt.report.json import report_to_json
from tests.support.plans import MIB, hostile_report, make_plan, make_report


def smaller() -> Plan:
    """The same graph in less: one module keeps nothing, another one runs more ops again."""
    plan = make_plan()
    (graph,) = plan.graphs
    shares = list(graph.modules)
    shares[0] = replace(shares[0], kept=0, kept_bytes=0, seconds=0.03)
    shares[1] = replace(shares[1], recomputed=9)
    graph = replace(
        graph,
        seconds=0.15,
        modules=tuple(shares),
        checkpoints=graph.checkpoints[1:],
        schedule=(*graph.schedule[:48], 0, *graph.schedule[48:]),
        recomputed=(*graph.recomputed, "mm"),
    )
    return replace(plan, budget_bytes=120 * MIB, peak_bytes=118 * MIB, graphs=(graph,))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "before.json", tmp_path / "after.json"
    make_plan().save(paths[0])
    smaller().save(paths[1])
    return paths


def test_it_says_which_figures_and_modules_changed(files: tuple[Path, Path]) -> None:
    found = compare(*map(load_planned, files))
    assert not found.same and found.same_graphs
    changed = {each.name: (each.before, each.after) for each in found.changes if each.before != each.after}
    assert changed == {
        "budget": (150 * MIB, 120 * MIB),
        "predicted peak": (make_plan().peak_bytes, 118 * MIB),
        "predicted time": (make_plan().overhead, smaller().overhead),
        "checkpoints": (6, 5),
        "bytes of checkpoints": (21 * MIB, 20 * MIB),
        "ops run again": (4, 5),
    }
    assert [each.path for each in found.modules] == ["transformer.h.0.mlp", "transformer.h.1.mlp"]
    text = diff_text(found)
    lines = {line.split()[0]: " ".join(line.split()) for line in text.splitlines() if line.strip()}
    assert lines["budget"] == "budget 150.0 MiB 120.0 MiB -30.0 MiB"
    assert lines["predicted"].endswith("+26.5 points") and lines["ops"] == "ops run again 4 5 +1"
    assert lines["transformer.h.0.mlp"] == "transformer.h.0.mlp 1.0 MiB → 0 B = ="
    assert lines["transformer.h.1.mlp"] == "transformer.h.1.mlp = 4 → 9 ="
    assert "measured" not in text and "numerics" not in text


def test_the_same_plan_is_the_same(files: tuple[Path, Path]) -> None:
    found = compare(load_planned(files[0]), load_planned(files[0]))
    assert found.same and found.modules == () and diff_text(found) == "the same plan"


def test_another_schedule_with_the_same_figures_is_not_the_same() -> None:
    plan = make_plan()
    graph = replace(plan.graphs[0], schedule=tuple(reversed(plan.graphs[0].schedule)))
    before, after = (replace(load_of(plan), plan=each) for each in (plan, replace(plan, graphs=(graph,))))
    found = compare(before, after)
    assert not found.same and "Every module keeps" in diff_text(found)


def load_of(plan: Plan) -> Any:
    from graphopt.report.diff import Planned

    return Planned(plan, None)


def test_reports_are_compared_with_what_was_measured(tmp_path: Path, files: tuple[Path, Path]) -> None:
    report = make_report()
    (tmp_path / "report.json").write_text(json.dumps(report_to_json(report)))
    (tmp_path / "verified.json").write_text(json.dumps({"equal": True, "report": report_to_json(report)}))
    for name in ("report.json", "verified.json"):
        found = compare(load_planned(tmp_path / name), load_planned(files[1]))
        figures = diff_to_json(found)["figures"]
        assert report.measured is not None
        assert figures["measured peak"] == {"before": report.measured.peak_bytes, "after": None}
        assert figures["measured time"] == {"before": pytest.approx(0.19), "after": None}
        assert figures["budget"] == {"before": 150 * MIB, "after": 120 * MIB}
    again = compare(load_planned(tmp_path / "report.json"), load_planned(tmp_path / "verified.json"))
    assert again.same


def test_another_graph_is_said_to_be_one_and_text_is_plain(tmp_path: Path) -> None:
    hostile = hostile_report().plan
    hostile.save(tmp_path / "hostile.json")
    found = compare(load_of(make_plan()), load_planned(tmp_path / "hostile.json"))
    assert not found.same_graphs
    text = diff_text(found)
    assert "different graphs" in text and "\x1b" not in text and max(map(len, text.splitlines())) <= 110


def test_the_command_and_its_exit_codes(files: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["diff", *map(str, files)]) == 0
    assert "ops run again" in capsys.readouterr().out
    assert cli.main(["diff", str(files[0]), str(files[0]), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "graphopt.diff/1" and data["same"] is True and data["modules"] == []
    assert cli.main(["diff", str(files[0]), str(tmp_path / "nowhere.json")]) == 2
    assert cli.main(["diff", str(files[0])]) == 2
    (tmp_path / "changed.json").write_text(files[0].read_text().replace("157286400", "157286401"))
    for name, text in {"changed.json": None, "list.json": "[1]", "other.json": '{"schema": "x"}'}.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        assert cli.main(["diff", str(files[0]), str(tmp_path / name)]) == 6, name
        assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda root: root.pop("plan"), r"plan\.graphs: expected a list"),
        (lambda root: root["plan"].update(graphs=[7]), r"plan\.graphs: expected a list"),
        (lambda root: root["plan"].update(budget_bytes=-1), r"plan\.budget_bytes: expected a whole number"),
        (lambda root: root["plan"]["graphs"][0].pop("modules"), r"plan\.graphs\[0\]\.modules: missing"),
        (lambda root: root["plan"]["graphs"][0]["modules"][2].update(kept="x"), r"modules\[2\]\.kept: expected"),
        (lambda root: root.update(measured=[]), r"measured: expected an object"),
    ],
)
def test_a_report_is_checked_field_by_field(change: Any, where: str, tmp_path: Path) -> None:
    root = json.loads(json.dumps(report_to_json(make_report())))
    change(root)
    (tmp_path / "report.json").write_text(json.dumps(root))
    with pytest.raises(PlanMismatchError, match=rf"report\.json: .*{where}"):
        load_planned(tmp_path / "report.json")


def test_it_needs_no_torch(files: tuple[Path, Path]) -> None:
    words = ["diff", *map(str, files)]
    code = f"import sys; from graphopt.cli.cli import main; sys.exit(main({words!r}) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
