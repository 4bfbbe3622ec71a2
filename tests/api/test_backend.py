"""torch.compile(backend="graphopt"): the same path, by name."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

import graphopt
from graphopt.verify.step_result import differences, run_step
from tests.api.test_optimize import BATCH, Blocks, budget_of, measured


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def test_the_backend_is_registered() -> None:
    assert "graphopt" in torch._dynamo.list_backends()


def test_it_trains_inside_the_budget_with_eagers_results() -> None:
    torch.manual_seed(0)
    model = Blocks()
    eager = run_step(model, model._call_impl, BATCH, {})
    budget = budget_of(0.5)
    compiled = torch.compile(model, backend="graphopt", options={"mem_budget": budget})
    assert differences(eager, run_step(model, compiled, BATCH, {})) == []
    peak = measured(compiled, *BATCH)
    assert peak <= budget < measured(model, *BATCH)


def test_a_new_shape_is_a_new_plan_not_a_symbolic_one() -> None:
    torch.manual_seed(0)
    model = Blocks()
    compiled = torch.compile(model, backend="graphopt", options={"mem_budget": "64MiB"})
    for rows in (512, 300, 77):
        batch = (torch.randn(rows, 32),)
        eager = run_step(model, model._call_impl, batch, {})
        assert differences(eager, run_step(model, compiled, batch, {})) == []


def test_inference_runs() -> None:
    model = Blocks().eval()
    compiled = torch.compile(model, backend="graphopt", options={"mem_budget": "64MiB"})
    with torch.no_grad():
        assert torch.equal(compiled(*BATCH), model(*BATCH))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (None, "'mem_budget' is missing"),
        ({"mem_budget": "1MiB", "speed": 3}, "unknown option 'speed'"),
        ({"mem_budget": "8G"}, "two readings"),
        ({"mem_budget": "1MiB", "planner": "magic"}, "unknown planner"),
    ],
)
def test_bad_options_are_named(options: dict[str, object] | None, message: str) -> None:
    compiled = torch.compile(Blocks(), backend="graphopt", options=options)
    with pytest.raises(BackendCompilerFailed, match=message) as caught:
        compiled(*BATCH)
    assert isinstance(caught.value.inner_exception, graphopt.UsageError)


def test_a_graph_break_is_refused_with_the_way_out() -> None:
    compiled = torch.compile(Blocks(breaks=True), backend="graphopt", options={"mem_budget": "64MiB"})
    with pytest.raises(BackendCompilerFailed, match=r"use graphopt\.optimize") as caught:
        compiled(*BATCH)
    assert isinstance(caught.value.inner_exception, graphopt.CaptureError)


def test_too_small_a_budget_is_a_budget_error() -> None:
    compiled = torch.compile(Blocks(), backend="graphopt", options={"mem_budget": "100KiB"})
    with pytest.raises(BackendCompilerFailed, match="is too small") as caught:
        compiled(*BATCH)
    assert isinstance(caught.value.inner_exception, graphopt.BudgetError)


def test_the_environment_names_the_budget_where_no_option_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_MEM_BUDGET", "100KiB")
    with pytest.raises(BackendCompilerFailed, match="is too small"):
        torch.compile(Blocks(), backend="graphopt")(*BATCH)
    torch._dynamo.reset()
    torch.compile(Blocks(), backend="graphopt", options={"mem_budget": "64MiB"})(*BATCH)
    torch._dynamo.reset()
    monkeypatch.setenv("GRAPHOPT_MEM_BUDGET", "8G")
    with pytest.raises(BackendCompilerFailed, match="GRAPHOPT_MEM_BUDGET: '8G' has two readings"):
        torch.compile(Blocks(), backend="graphopt", options={"planner": "sqrt_n"})(*BATCH)
