"""A plan that was kept: used again, at its own budget and at others, and refused where it is not this graph's."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

import graphopt
from graphopt.api import optimize
from graphopt.plan import graph_study
from graphopt.verify.step_result import differences, run_step
from tests.api.test_optimize import BATCH, Blocks, budget_of, measured


@pytest.fixture
def model() -> Blocks:
    torch.manual_seed(0)
    return Blocks()


def test_a_kept_plan_is_used_and_checked(model: Blocks, tmp_path: Path) -> None:
    budget = budget_of(0.5)
    graphopt.optimize(model, budget, example_inputs=BATCH)
    plan = model.graphopt.plan
    plan.save(tmp_path / "plan.json")
    again = copy.deepcopy(model)
    assert again.graphopt is None
    graphopt.optimize(again, example_inputs=BATCH, plan=tmp_path / "plan.json")
    assert again.graphopt.plan.graphs[0].schedule == plan.graphs[0].schedule
    with pytest.raises(graphopt.PlanMismatchError, match="another graph"):
        graphopt.optimize(Blocks(depth=5), example_inputs=BATCH, plan=tmp_path / "plan.json")


def test_a_kept_plan_is_good_for_every_budget_and_nothing_is_planned_again(
    model: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate = graphopt.estimate(copy.deepcopy(model), BATCH)
    optimize.plan_model(copy.deepcopy(model), BATCH, mem_budget=budget_of(0.7)).plan.save(tmp_path / "plan.json")
    monkeypatch.setattr(graph_study, "pareto_curve", lambda _problem: pytest.fail("planned again"))
    least, most = estimate.minimum_bytes, estimate.eager_peak_bytes
    overheads = []
    for budget in (least, (2 * least + most) // 3, (least + 2 * most) // 3, most):
        twin = copy.deepcopy(model)
        eager = run_step(twin, twin._call_impl, BATCH, {})
        graphopt.optimize(twin, budget, example_inputs=BATCH, plan=tmp_path / "plan.json")
        assert twin.graphopt.plan.peak_bytes <= budget and twin.graphopt.plan.minimum_bytes == least
        assert differences(eager, run_step(twin, twin, BATCH, {})) == []
        assert measured(twin, *BATCH) <= budget
        overheads.append(twin.graphopt.plan.overhead)
    assert overheads == sorted(overheads, reverse=True) and overheads[0] > overheads[-1] == 0
    with pytest.raises(graphopt.BudgetError, match="planning anew") as caught:
        graphopt.optimize(copy.deepcopy(model), least - 1, example_inputs=BATCH, plan=tmp_path / "plan.json")
    assert caught.value.minimum_bytes == least


def test_a_kept_plan_of_several_graphs_serves_other_budgets_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Blocks(breaks=True)
    options = {"cost_model": "roofline"}
    least = graphopt.estimate(copy.deepcopy(model), BATCH, **options).minimum_bytes
    plan = optimize.plan_model(copy.deepcopy(model), BATCH, mem_budget=budget_of(0.7), **options).plan
    monkeypatch.setattr(graph_study, "pareto_curve", lambda _problem: pytest.fail("planned again"))
    again = optimize.plan_model(copy.deepcopy(model), BATCH, mem_budget=plan.budget_bytes, plan=plan, **options).plan
    assert [g.schedule for g in again.graphs] == [g.schedule for g in plan.graphs]
    smaller = optimize.plan_model(copy.deepcopy(model), BATCH, mem_budget=least, plan=plan, **options).plan
    assert smaller.peak_bytes <= least and smaller.overhead > plan.overhead


def test_a_kept_curve_that_was_changed_is_refused(model: Blocks) -> None:
    graphopt.optimize(model, budget_of(0.5), example_inputs=BATCH)
    plan = model.graphopt.plan
    for runs in ("0-3", "5-1", "0-99999999", "0-3 x", "7-9 0-6"):
        points = (dataclasses.replace(plan.graphs[0].curve[0], runs=runs), *plan.graphs[0].curve[1:])
        wrong = dataclasses.replace(plan, graphs=(dataclasses.replace(plan.graphs[0], curve=points),))
        with pytest.raises(graphopt.GraphoptError) as caught:
            graphopt.optimize(Blocks(), plan.eager_peak_bytes, example_inputs=BATCH, plan=wrong)
        assert caught.value.exit_code == 6


def test_a_plan_whose_schedule_was_changed_is_refused(model: Blocks) -> None:
    graphopt.optimize(model, budget_of(0.5), example_inputs=BATCH)
    plan = model.graphopt.plan
    reordered = tuple(reversed(plan.graphs[0].schedule))
    wrong = dataclasses.replace(plan, graphs=(dataclasses.replace(plan.graphs[0], schedule=reordered),))
    with pytest.raises(graphopt.GraphoptError) as caught:
        graphopt.optimize(Blocks(), example_inputs=BATCH, plan=wrong)
    assert caught.value.exit_code == 6
