"""The benchmark of the planners: its generator, its verdicts, and one small run from end to end."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.planning import layered_graphs, planner_tables, published, subjects
from benchmarks.planning import planners as benchmark
from graphopt.problem.problem import Problem, save_problem


@pytest.mark.parametrize("nodes", [4, 10, 100, 500])
def test_layered_graphs_have_one_source_and_one_sink(nodes: int) -> None:
    problem = layered_graphs.layered_graph(nodes, seed=3)
    assert len(problem.ops) == len(problem.values) == nodes
    assert [i for i, op in enumerate(problem.ops) if not op.inputs] == [0]
    assert [v for v, readers in enumerate(problem.readers) if not readers] == [nodes - 1]
    assert problem == layered_graphs.layered_graph(nodes, seed=3) != layered_graphs.layered_graph(nodes, seed=4)


def edges_a_node(problem: Problem) -> float:
    return sum(len(op.inputs) for op in problem.ops) / len(problem.ops)


@pytest.mark.parametrize(("nodes", "edges"), [(100, 2.4), (250, 3.8), (500, 4.9), (1000, 5.9)])
def test_layered_graphs_are_as_dense_as_the_published_ones(nodes: int, edges: float) -> None:
    made = [layered_graphs.layered_graph(nodes, seed) for seed in range(5)]
    assert statistics.mean(map(edges_a_node, made)) == pytest.approx(edges, rel=0.25)
    assert statistics.mean(v.bytes for p in made for v in p.values) == pytest.approx(2000, rel=0.1)


def data(**changes: Any) -> planner_tables.Data:
    problem = {"name": "m", "group": "model", "minimum_bytes": 40, "ops": 900, "plan_seconds": 0.4}
    peer = {"model": "m", "peer": "checkpoint", "setting": "every block", "eager_peak_bytes": 100, "verdict": "better"}
    peer |= {"peer_peak_bytes": 50, "peer_overhead": 0.3, "auto_overhead": 0.1}
    figure = {"problem": "i", "peer": "DTR", "share": 0.8, "overhead": 0.02, "auto_overhead": 0.01, "note": ""}
    optimum = figure | {"peer": "Moccasin", "solver_seconds": 50.0, "auto_seconds": 0.4}
    return {"problems": [problem], "peers": [peer | changes], "published": [figure | changes], "optima": [optimum]}


def holding(found: planner_tables.Data) -> list[bool]:
    return [verdict["holds"] for verdict in planner_tables.verdicts(found)]


def test_verdicts_hold_only_where_they_do() -> None:
    assert holding(data()) == [True] * 7
    assert holding(data(auto_overhead=0.4, verdict="WORSE")) == [False, False, True, False, True, True, True]
    assert holding(data(peer_peak_bytes=39)) == [True, True, False, True, True, True, True]
    for change, place in (({"auto_overhead": 0.04}, 4), ({"auto_seconds": 0.6}, 5)):
        found = holding(data() | {"optima": [data()["optima"][0] | change]})
        assert [at for at, holds in enumerate(found) if not holds] == [place]
    for change, last in (({"plan_seconds": 0.6}, False), ({"plan_seconds": 0.6, "ops": 1001}, True)):
        assert all(holding(data() | {"problems": [data()["problems"][0] | change]})) is last
    assert holding({"problems": [], "peers": [], "published": [], "optima": []}) == []


def test_no_plan_of_ours_is_lost_and_no_plan_of_theirs_is_won() -> None:
    figure = data()["published"][0]
    for theirs, ours, holds in ((None, 0.5, True), (None, None, True), (0.5, None, False)):
        rows = [figure | {"overhead": theirs, "auto_overhead": ours}]
        assert holding({"problems": [], "peers": [], "published": rows, "optima": []}) == [holds]


def test_published_figures_are_of_problems_that_there_are() -> None:
    anchors = {figure.problem for figure in published.WITHOUT_GRADIENTS}
    assert anchors == set(benchmark.ANCHORS)
    instances = {path.stem for path in benchmark.INSTANCES.glob("*.json")}
    if not instances:
        pytest.skip("the instances of the literature are not here")
    assert {figure.problem for figure in published.ON_INSTANCES + published.OPTIMA} <= instances


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    save_problem(layered_graphs.layered_graph(40, 0), tmp_path / "small.json")
    monkeypatch.setattr(benchmark, "INSTANCES", tmp_path)
    monkeypatch.setattr(subjects, "RATIOS", (0.3, 0.7))
    monkeypatch.setattr(planner_tables, "MOST_SECONDS", 30.0)  # how fast this machine is today is not what is tested
    out = tmp_path / "out.json"
    words = ["planners.py", "small", "unet", "--instances", str(tmp_path), "--cost-model", "roofline"]
    monkeypatch.setattr(sys, "argv", [*words, "--exact", "0", "--json", str(out)])
    assert benchmark.main() == 0
    found = json.loads(out.read_text())
    assert [row["name"] for row in found["problems"]] == ["small", "unet"]
    assert all(b["bound"] <= b["auto"] + 1e-9 for row in found["problems"] for b in row["shares"].values())
    assert "at every peak that a peer reaches" in capsys.readouterr().out
    page = tmp_path / "page.md"
    page.write_text(f"before\n{planner_tables.BEGIN}\noutdated\n{planner_tables.END}\nafter\n")
    planner_tables.main(str(out), str(page))
    assert "| unet | 151 |" in page.read_text() and "outdated" not in page.read_text()
    assert page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")


def test_the_optimum_is_looked_for_where_something_must_be_recomputed() -> None:
    pytest.importorskip("ortools")
    curve = benchmark.plan(layered_graphs.layered_graph(24, 1))
    rows = list(benchmark.exact_rows("small", curve, limit_seconds=5.0))
    bounds = [curve.bound_at(row["share"]) for row in rows]
    assert rows and all(row["overhead"] >= bound - 1e-9 for row, bound in zip(rows, bounds, strict=True))
    assert list(benchmark.exact_rows("small", curve, limit_seconds=0.0)) == []
