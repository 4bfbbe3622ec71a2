"""Seconds given to look for a faster plan: they never cost anything but themselves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import graphopt
from graphopt.api import optimize
from graphopt.planners import Study
from graphopt.planners.moves import anneal
from graphopt.problem.schedule import Schedule, simulate
from tests.api.test_optimize import BATCH, Blocks, budget_of


@pytest.fixture
def model() -> Blocks:
    torch.manual_seed(0)
    return Blocks()


def test_plan_seconds_never_make_a_plan_slower_nor_larger(model: Blocks) -> None:
    options = {"mem_budget": budget_of(0.6), "cost_model": "roofline"}
    for planner in ("auto", "sqrt_n"):
        before = optimize.plan_model(copy.deepcopy(model), BATCH, planner=planner, **options).plan
        after = optimize.plan_model(copy.deepcopy(model), BATCH, planner=planner, plan_seconds=0.2, **options).plan
        assert after.peak_bytes <= after.budget_bytes and after.bound_overhead <= after.overhead <= before.overhead
    assert after.overhead < before.overhead  # there is much to gain on sqrt_n


def test_plan_seconds_are_divided_over_the_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def improve(_study: Study, schedule: Schedule, _budget_bytes: int, seconds: float) -> Schedule:
        asked.append(seconds)
        return schedule

    monkeypatch.setattr(anneal, "improve", improve)
    model = Blocks(breaks=True)
    options = {"mem_budget": budget_of(0.7), "cost_model": "roofline"}
    optimize.plan_model(model, BATCH, plan_seconds=3.0, **options)
    assert asked == [1.5, 1.5]


def test_a_training_step_is_searched_too(model: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def improve(_study: Study, schedule: Schedule, _budget_bytes: int, seconds: float) -> Schedule:
        asked.append(seconds)
        return schedule

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"example_inputs": (*BATCH, torch.zeros(512, 32)), "cost_model": "roofline"}
    free = graphopt.train_step(model, nn.functional.mse_loss, optimizer, **options)
    monkeypatch.setattr(anneal, "improve", improve)
    graphopt.train_step(
        model, nn.functional.mse_loss, optimizer, (free.plan.minimum_bytes + free.plan.peak_bytes) // 2, **options
    )
    assert asked == []
    budget = (free.plan.minimum_bytes + free.plan.peak_bytes) // 2
    graphopt.train_step(model, nn.functional.mse_loss, optimizer, budget, plan_seconds=2.0, **options)
    assert asked == [2.0]


def test_a_search_that_goes_over_the_budget_by_generator_states_is_not_taken(
    model: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def improve(study: Study, schedule: Schedule, _budget_bytes: int, _seconds: float) -> Schedule:
        problem = study.problem
        every = tuple(range(len(problem.ops)))
        return every if simulate(problem, every).peak_bytes > _budget_bytes else schedule

    options = {"mem_budget": budget_of(0.4), "cost_model": "roofline"}
    before = optimize.plan_model(copy.deepcopy(model), BATCH, **options).plan
    monkeypatch.setattr(anneal, "improve", improve)
    assert optimize.plan_model(copy.deepcopy(model), BATCH, plan_seconds=1.0, **options).plan.graphs == before.graphs
