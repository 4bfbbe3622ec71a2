"""A second start of the same script plans nothing, and believes nothing of what it finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import graphopt
from graphopt.base.errors import GraphoptError
from graphopt.plan import graph_study

X = torch.randn(32, 24)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path))
    return tmp_path


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for _ in range(16) for layer in (nn.Linear(24, 24), nn.GELU())]
    return nn.Sequential(*layers)


def plan() -> graphopt.Plan:
    """At seven tenths of eager's peak."""
    eager = graphopt.estimate(StepOf(model()), X).eager_peak_bytes
    planned = graphopt.optimize(StepOf(model()), int(eager * 0.7), example_inputs=X)
    return planned.graphopt.plan  # type: ignore[no-any-return, union-attr]


class StepOf(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).square().mean()  # type: ignore[no-any-return]


def refuse(*_: object) -> None:
    raise AssertionError("the planners were asked")


def test_a_curve_is_found_again_and_nothing_is_planned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = plan()
    assert list(folder.glob("curve-*.json"))
    monkeypatch.setattr(graph_study, "pareto_curve", refuse)
    assert plan().graphs[0].schedule == first.graphs[0].schedule
    assert plan().peak_bytes == first.peak_bytes


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    "damage",
    [
        lambda entries: entries.update(points=[["auto", "0-3"]]),
        lambda entries: entries.update(points=[["auto", "5-2"]]),
        lambda entries: entries.update(points=[[1, "0"]]),
        lambda entries: entries.update(points="all"),
        lambda entries: entries.clear(),
    ],
    ids=["no schedule", "counts down", "no name", "no list", "nothing"],
)
def test_what_is_no_curve_of_this_graph_is_planned_anew(folder: Path, damage: object) -> None:
    first = plan()
    for path in folder.glob("curve-*.json"):
        data = json.loads(path.read_text())
        damage(data["entries"])  # type: ignore[operator]
        path.write_text(json.dumps(data))
    assert plan().graphs[0].schedule == first.graphs[0].schedule


def test_another_graph_is_planned_by_itself() -> None:
    plan()
    with pytest.raises(GraphoptError, match="too small"):
        graphopt.optimize(StepOf(model()), 1000, example_inputs=X)
    wider = StepOf(nn.Sequential(*[nn.Linear(24, 24) for _ in range(40)]))
    assert graphopt.optimize(wider, "64MiB", example_inputs=X).graphopt.plan.graphs  # type: ignore[union-attr]
