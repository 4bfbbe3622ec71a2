"""estimate(): the same answers as planning gives, without a step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import graphopt
from graphopt.api import optimize
from tests.api.test_optimize import BATCH, Blocks


@pytest.fixture(scope="module")
def found() -> graphopt.Estimate:
    torch.manual_seed(0)
    return graphopt.estimate(Blocks(), BATCH, cost_model="roofline")


def test_it_says_what_a_plan_at_that_budget_says() -> None:
    # made here: a fixture of the module is planned before a test's settings hold, with more effort
    found = graphopt.estimate(Blocks(), BATCH, cost_model="roofline")
    torch.manual_seed(0)
    model = Blocks()
    for share in (0.0, 0.3, 0.8, 1.0):
        budget = int(found.minimum_bytes + share * (found.eager_peak_bytes - found.minimum_bytes))
        plan = optimize.plan_model(copy.deepcopy(model), BATCH, mem_budget=budget, cost_model="roofline").plan
        assert found.fits(budget)
        assert found.overhead_at(budget) == pytest.approx(plan.overhead, abs=1e-12)
        assert found.peak_at(budget) == plan.peak_bytes <= budget
        assert found.minimum_bytes == plan.minimum_bytes and found.eager_peak_bytes == plan.eager_peak_bytes


def test_below_the_minimum_it_does_not_fit(found: graphopt.Estimate) -> None:
    assert not found.fits(found.minimum_bytes - 1)
    with pytest.raises(graphopt.BudgetError, match="Blocks needs at least") as caught:
        found.overhead_at(found.minimum_bytes - 1)
    assert caught.value.minimum_bytes == found.minimum_bytes
    with pytest.raises(graphopt.BudgetParseError):
        found.fits("8G")


def test_budgets_are_read_as_everywhere(found: graphopt.Estimate) -> None:
    assert found.overhead_at("1GiB") == found.overhead_at("50%") == 0.0
    assert found.peak_at("1GiB") == found.eager_peak_bytes


def test_it_is_a_table(found: graphopt.Estimate) -> None:
    text = str(found)
    assert "Blocks trains in" in text and "extra time" in text and "resident before a step, on cpu: parameters" in text
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 110


def test_nothing_of_the_model_is_run_or_changed() -> None:
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not torch.compiler.is_compiling():
                Counting.calls += 1
            return super().forward(x).square()

    model = Counting(8, 8).eval()
    generator = torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    graphopt.estimate(model, (torch.zeros(4, 8), torch.zeros(4, 8)), nn.functional.mse_loss)
    assert Counting.calls == 0 and not model.training and not hasattr(model, "graphopt")
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_model_of_several_graphs_has_one_curve_too() -> None:
    torch.manual_seed(0)
    model = Blocks(breaks=True)
    found = graphopt.estimate(copy.deepcopy(model), BATCH, cost_model="roofline")
    seconds = [overhead for _, overhead, _ in found.points]
    assert len(seconds) > 3 and seconds == sorted(seconds, reverse=True) and seconds[-1] == pytest.approx(0, abs=1e-9)
    budget = (found.minimum_bytes + found.eager_peak_bytes) // 2
    plan = optimize.plan_model(model, BATCH, mem_budget=budget, cost_model="roofline").plan
    assert plan.minimum_bytes == found.minimum_bytes and found.overhead_at(budget) >= plan.overhead - 1e-9
